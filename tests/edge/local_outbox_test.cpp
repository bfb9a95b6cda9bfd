// A session's way out, event by event, against a segment whose client is the test.
#include "edge/local_outbox.h"

#include <doctest/doctest.h>

using namespace updraft;
using namespace updraft::ipc;

namespace {

struct Session {
  Session()
      : segment(std::move(Segment::create(SegmentShape{4096, 65536, 8, 1 << 18})).value()),
        outbox(LocalOutbox::Mapped{segment, std::make_shared<Doorbell>(
                                                std::move(Doorbell::create()).value())},
               std::make_shared<std::atomic<int32_t>>(0)) {}
  uint64_t slot() const { return segment->slot(0).word.load(); }
  void set_slot(uint32_t generation, SlotPhase phase) {
    segment->slot(0).word.store(slot_word(generation, phase));
  }

  const std::shared_ptr<Segment> segment;
  LocalOutbox outbox;
};

}  // namespace

TEST_CASE("an end makes its accepted slot DONE") {
  Session session;
  session.set_slot(1, SlotPhase::kAccepted);
  session.outbox.open({0, 1}, "client", "service");
  CHECK_FALSE(session.outbox.deliver({0, 1}, Started{}).asks_for_something());
  CHECK(session.slot() == slot_word(1, SlotPhase::kAccepted));
  CHECK_FALSE(session.outbox.deliver({0, 1}, Finished{}).asks_for_something());
  CHECK(session.slot() == slot_word(1, SlotPhase::kDone));
  CHECK(session.outbox.in_flight() == 0);
}

TEST_CASE("an end leaves a slot alone that its client has freed or filled anew meanwhile") {
  // The client reads the end before the daemon gets to the slot.
  Session session;
  session.outbox.open({0, 1}, "client", "service");
  session.set_slot(2, SlotPhase::kFilled);
  (void)session.outbox.deliver({0, 1}, Finished{});
  CHECK(session.slot() == slot_word(2, SlotPhase::kFilled));
  session.outbox.open({0, 2}, "client", "service");
  session.set_slot(2, SlotPhase::kFree);
  (void)session.outbox.deliver({0, 2}, Finished{});
  CHECK(session.slot() == slot_word(2, SlotPhase::kFree));
}
