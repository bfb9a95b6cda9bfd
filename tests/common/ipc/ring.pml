/* The ring of common/ipc/ring.h with its doorbells, and the death of either side, for the model checker
   spin (run_ring_model.sh). Every store and load that the other side can see is a step of its own, in
   the order in which the code makes them; the two full fences are there as that order (a sequentially
   consistent memory is what they buy for flag and position; tail and content are ordered by release and
   acquire).

   The ring holds two records, and four are sent. Proven: what is received is 0, 1, 2, 3 without a hole, a
   double or a torn record; nobody sleeps while there is work or room (a wake-up lost would be a deadlock:
   an invalid end state); when one side dies, the other one ends. */

#define CAPACITY 2
#define RECORDS 4

byte slot[CAPACITY];       /* content; TORN while it is being written */
#define TORN 255
byte tail = 0;             /* records since the start */
byte head = 0;
bit consumer_waits = 0;
bit producer_waits = 0;
byte consumer_bell = 0;    /* eventfd counters: 0 or more */
byte producer_bell = 0;
bit producer_dead = 0;
bit consumer_dead = 0;
byte received = 0;

/* A process may die at any step: it takes the exit instead of going on. */
#define MAY_DIE(who) if :: skip :: who = 1; goto dead fi

active proctype Producer() {
  byte next = 0;
  byte known_head = 0;
  bit ring = 0;
  do
  :: next == RECORDS -> break
  :: else ->
     /* has_room() */
     if
     :: next - known_head < CAPACITY -> skip
     :: else -> known_head = head
     fi;
     if
     :: next - known_head < CAPACITY ->
        MAY_DIE(producer_dead);
        slot[next % CAPACITY] = TORN;
        MAY_DIE(producer_dead);
        slot[next % CAPACITY] = next;
        MAY_DIE(producer_dead);
        tail = next + 1;                      /* release */
        next = next + 1;
        MAY_DIE(producer_dead);
        /* wake_consumer(): the fence is above this look */
        if
        :: consumer_waits ->
           consumer_waits = 0;
           MAY_DIE(producer_dead);
           consumer_bell = 1
        :: else -> skip
        fi
     :: else ->
        /* prepare_wait(), then sleep on the doorbell or the peer's death */
        producer_waits = 1;
        MAY_DIE(producer_dead);
        known_head = head;                    /* after the fence */
        if
        :: next - known_head < CAPACITY -> producer_waits = 0
        :: else ->
           if
           :: producer_bell > 0 -> producer_bell = 0
           :: consumer_dead -> goto dead
           fi
        fi
     fi
  od;
  producer_dead = 1;                          /* the end of the process is a death, too */
dead:
  skip
}

active proctype Consumer() {
  byte at = 0;
  byte known_tail = 0;
  bit peer_died = 0;
  do
  :: received == RECORDS -> break
  :: else ->
     if
     :: known_tail == at -> known_tail = tail /* acquire */
     :: else -> skip
     fi;
     if
     :: known_tail != at ->
        assert(slot[at % CAPACITY] == at);    /* whole, in order, once */
        at = at + 1;
        received = received + 1;
        MAY_DIE(consumer_dead);
        /* give_room(): when through with what is known (or with a quarter: never later than that) */
        if
        :: at == known_tail ->
           head = at;                         /* release */
           MAY_DIE(consumer_dead);
           if
           :: producer_waits ->
              producer_waits = 0;
              MAY_DIE(consumer_dead);
              producer_bell = 1
           :: else -> skip
           fi
        :: else -> skip
        fi
     :: else ->
        if
        :: peer_died -> break                 /* looked once more after the death */
        :: else -> skip
        fi;
        consumer_waits = 1;
        MAY_DIE(consumer_dead);
        if
        :: tail != at -> consumer_waits = 0   /* after the fence */
        :: else ->
           if
           :: consumer_bell > 0 -> consumer_bell = 0
           :: producer_dead -> peer_died = 1
           fi
        fi
     fi
  od;
  consumer_dead = 1;
dead:
  skip
}
