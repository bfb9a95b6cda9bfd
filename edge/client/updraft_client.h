/* Updraft's client library as a C ABI: hand requests to the edge daemon of this machine through
 * shared memory, read the answers as they are written. Everything else (updraft_client.hpp, the
 * Python package) stands on these functions.
 *
 *   updraft_session* session;
 *   if (updraft_connect(NULL, "my program", 0, 0, &session) != UPDRAFT_OK)
 * puts(updraft_error_text()); updraft_request* request = updraft_request_new(UPDRAFT_CHAT);
 *   updraft_request_add_message(request, "user");
 *   updraft_request_add_text(request, "Go back.", 8);
 *   updraft_submit(session, request, &id);
 *   while (updraft_next(session, -1, &event) == 1 && event->kind != UPDRAFT_FINISHED && ...) ...
 *
 * Errors. A function that can fail returns UPDRAFT_OK or one of enum updraft_status, the negative
 * of the errno whose meaning is nearest; updraft_error_text() then says in one sentence what
 * failed, for the thread that called. What goes wrong with a request after it was handed over
 * arrives as its last event (UPDRAFT_FAILED).
 *
 * Threads. A session, its requests and its buffers belong to one thread at a time; another thread
 * that enters meanwhile gets UPDRAFT_ERR_THREAD and changes nothing. updraft_cancel() alone may be
 * called by any thread, while the session is open. Sessions are independent of
 * each other. After fork() a session belongs to the parent: in the child every call answers
 * UPDRAFT_ERR_FORKED, and updraft_close() only forgets it. Nothing survives exec().
 *
 * Texts are UTF-8. Every text that comes out ends with a zero byte, which its count of bytes does
 * not include.
 *
 * Versions. Functions and trailing fields of updraft_event are added, never changed, under one
 * soname. */
#ifndef UPDRAFT_CLIENT_H
#define UPDRAFT_CLIENT_H

#include <stdint.h>

#if defined(__GNUC__)
#define UPDRAFT_API __attribute__((visibility("default")))
#else
#define UPDRAFT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define UPDRAFT_CLIENT_ABI 1

enum updraft_status {
  UPDRAFT_OK = 0,
  UPDRAFT_ERR_FORKED = -10, /* ECHILD: the session belongs to the parent process */
  UPDRAFT_ERR_BUSY = -11,   /* EAGAIN: as many requests in flight as the daemon allows; take events,
                               then try again */
  UPDRAFT_ERR_NO_MEMORY = -12, /* ENOMEM */
  UPDRAFT_ERR_REFUSED =
      -13, /* EACCES: the daemon does not want this session (user, quota, version) */
  UPDRAFT_ERR_THREAD = -16,    /* EBUSY: another thread is inside this session */
  UPDRAFT_ERR_INVALID = -22,   /* EINVAL: an argument makes no sense */
  UPDRAFT_ERR_NO_ROOM = -28,   /* ENOSPC: the session's shared memory is full */
  UPDRAFT_ERR_TOO_LARGE = -90, /* EMSGSIZE: the request can never be handed over */
  UPDRAFT_ERR_LOST = -104,     /* ECONNRESET: the daemon is gone */
  UPDRAFT_ERR_TIMEOUT = -110,  /* ETIMEDOUT: the daemon did not answer the handshake */
  UPDRAFT_ERR_NO_DAEMON = -111 /* ECONNREFUSED: nobody listens at the socket */
};

typedef struct updraft_session updraft_session;
typedef struct updraft_request updraft_request;

/* --- about the library --- */

UPDRAFT_API const char* updraft_version(void);  /* "0.1.0" */
UPDRAFT_API uint32_t updraft_abi_version(void); /* UPDRAFT_CLIENT_ABI of the library */
UPDRAFT_API const char* updraft_status_name(
    int status); /* "UPDRAFT_ERR_BUSY"; "unknown" for anything else */
/* Why the last call of this thread failed; valid until this thread's next failing call. */
UPDRAFT_API const char* updraft_error_text(void);

/* --- sessions --- */

enum updraft_connect_flags {
  UPDRAFT_NO_SHARED_MEMORY =
      1 /* whole requests as messages; updraft_allocate() answers UPDRAFT_ERR_NO_ROOM */
};

/* Opens a session. socket_path NULL: $XDG_RUNTIME_DIR/updraft/edge.sock, or
 * /tmp/updraft-<uid>/edge.sock. client_name (NULL: "client") appears in the daemon's log.
 * payload_bytes is the shared memory for texts and images to begin with, 0: 8 MiB. */
UPDRAFT_API int updraft_connect(const char* socket_path, const char* client_name,
                                uint64_t payload_bytes, uint32_t flags, updraft_session** session);
/* The same; when the session is lost later, updraft_next() connects it again at the same path, and
 * tries so for up to reconnect_ms (0: never, at most 60000; not with UPDRAFT_NO_SHARED_MEMORY).
 * Meanwhile it may take that long, whatever its timeout, and so may updraft_poll(). Buffers,
 * requests in flight and the descriptor of updraft_fd() stay what they are. What is guaranteed, for
 * every request in flight:
 *   - It ends exactly once here, and no event of its answer comes twice or is left out (a second
 *     UPDRAFT_STARTED says that another daemon has begun anew).
 *   - The same daemon (the socket was lost, the process lives) does not run it a second time: its
 *     answer goes on where it stood. An answer of more than 256 KiB so far ends with "node_lost".
 *   - Another daemon at the path (a restart) runs it anew when none of its tokens have come here;
 *     else it ends with "node_lost". The daemon that died may have run it, unseen.
 * Nobody at the path in time: all end with "node_lost", then the session is lost
 * (UPDRAFT_ERR_LOST). */
UPDRAFT_API int updraft_connect_reconnecting(const char* socket_path, const char* client_name,
                                             uint64_t payload_bytes, uint32_t flags,
                                             int32_t reconnect_ms, updraft_session** session);
/* Ends the session: what runs is cancelled, buffers and events become invalid. NULL is allowed. */
UPDRAFT_API void updraft_close(updraft_session* session);

/* The models that the daemon served at connect time. Names are valid as long as the session; NULL
 * and 0 beyond the end. */
UPDRAFT_API uint32_t updraft_model_count(const updraft_session* session);
UPDRAFT_API const char* updraft_model_name(const updraft_session* session, uint32_t index);
UPDRAFT_API int32_t updraft_model_context_tokens(const updraft_session* session, uint32_t index);
/* Values of one row of input embeddings that the model takes; 0: it takes none here. */
UPDRAFT_API int32_t updraft_model_embedding_dim(const updraft_session* session, uint32_t index);
/* How many requests may be in flight at once. */
UPDRAFT_API uint32_t updraft_requests_max(const updraft_session* session);

/* --- shared memory --- */

/* A writable piece of the session's shared memory, aligned to 64 bytes. What is written there is
 * handed over without being copied: name it in updraft_request_add_placed_*(). When the memory is
 * full the session takes more, as far as the daemon allows. */
UPDRAFT_API int updraft_allocate(updraft_session* session, uint64_t bytes, void** data);
/* The same in memory of its own, for one large payload: sealed when it is submitted, so that its
 * bytes cannot change any more, and given back to the system when the request has ended. Dearer
 * than updraft_allocate(), whose pages are warm. */
UPDRAFT_API int updraft_allocate_once(updraft_session* session, uint64_t bytes, void** data);
/* Gives back a piece that was not submitted. */
UPDRAFT_API int updraft_release(updraft_session* session, void* data);

/* --- requests --- */

enum updraft_request_kind {
  UPDRAFT_CHAT = 0,      /* messages through the model's chat template */
  UPDRAFT_COMPLETION = 1 /* a text or token ids, continued as they are */
};

/* A request to fill in; it may be submitted again unless it names placed buffers. NULL: no memory
 * or no such kind. */
UPDRAFT_API updraft_request* updraft_request_new(int kind);
UPDRAFT_API void updraft_request_free(updraft_request* request);

/* Settings by name, in OpenAI's meaning; an unknown name is UPDRAFT_ERR_INVALID. Ranges are checked
 * by the daemon. text:     model (default: the daemon's first), session, trace, tier ("any",
 * "edge", "cloud"), residency ("any", "local-only"), priority ("system", "interactive", "default",
 * "bulk") integer:  max_tokens, top_k, seed, n, top_logprobs, deadline_ms; 0 or 1: logprobs, echo,
 * ignore_eos, enable_thinking number:   temperature, top_p, min_p, repetition_penalty,
 * frequency_penalty, presence_penalty */
UPDRAFT_API int updraft_request_set_text(updraft_request* request, const char* name,
                                         const char* value);
UPDRAFT_API int updraft_request_set_integer(updraft_request* request, const char* name,
                                            int64_t value);
UPDRAFT_API int updraft_request_set_number(updraft_request* request, const char* name,
                                           double value);
UPDRAFT_API int updraft_request_add_stop(updraft_request* request, const char* text,
                                         uint64_t bytes);
UPDRAFT_API int updraft_request_add_logit_bias(updraft_request* request, int32_t token_id,
                                               double bias);

/* Begins a message ("system", "user", "assistant", "tool"); the parts that follow belong to it. */
UPDRAFT_API int updraft_request_add_message(updraft_request* request, const char* role);
/* The next part of the newest message. The bytes are borrowed: they must stay as they are until
 * updraft_submit() has returned, which copies them once, straight into shared memory when they are
 * more than a few. */
UPDRAFT_API int updraft_request_add_text(updraft_request* request, const char* text,
                                         uint64_t bytes);
/* mime: "image/png" or "image/jpeg", data is the encoded file; or
 * "image/x-raw-rgb;width=W;height=H", data is H rows of W pixels of three bytes. */
UPDRAFT_API int updraft_request_add_image(updraft_request* request, const char* mime,
                                          const void* data, uint64_t bytes);
/* The same with the first `bytes` of a piece from updraft_allocate(); nothing is copied. A
 * successful submit takes the piece: it must not be written any more and is freed when the request
 * has ended. */
UPDRAFT_API int updraft_request_add_placed_text(updraft_request* request, void* data,
                                                uint64_t bytes);
UPDRAFT_API int updraft_request_add_placed_image(updraft_request* request, const char* mime,
                                                 void* data, uint64_t bytes);

/* UPDRAFT_COMPLETION: prompts as text or as token ids, not both in one request; copied, or placed
 * like the parts of a message. The daemon checks ids against the model's vocabulary. */
UPDRAFT_API int updraft_request_add_prompt(updraft_request* request, const char* text,
                                           uint64_t bytes);
UPDRAFT_API int updraft_request_add_prompt_ids(updraft_request* request, const int32_t* ids,
                                               uint64_t id_count);
UPDRAFT_API int updraft_request_add_placed_prompt(updraft_request* request, void* data,
                                                  uint64_t bytes);
UPDRAFT_API int updraft_request_add_placed_prompt_ids(updraft_request* request, int32_t* ids,
                                                      uint64_t id_count);

/* UPDRAFT_COMPLETION: one prompt made of parts, in the order of these calls, instead of whole
 * prompts. A text is tokenized by itself. Rows of input embeddings stand in place of rows of the
 * model's own embedding table, one position each: `row_count` rows of `dim` finite values
 * (updraft_model_embedding_dim()), row after row, little-endian. They mean something to one model
 * alone, so such a request is answered on this machine or not at all. Copied, or, placed, read
 * where they lie; row_count * dim values must fit the piece. */
enum updraft_embedding_type { UPDRAFT_F32 = 0, UPDRAFT_F16 = 1, UPDRAFT_BF16 = 2 };
UPDRAFT_API int updraft_request_add_part_text(updraft_request* request, const char* text,
                                              uint64_t bytes);
UPDRAFT_API int updraft_request_add_part_ids(updraft_request* request, const int32_t* ids,
                                             uint64_t id_count);
UPDRAFT_API int updraft_request_add_part_embeddings(updraft_request* request, int type,
                                                    const void* rows, uint64_t row_count,
                                                    uint64_t dim);
UPDRAFT_API int updraft_request_add_placed_part_embeddings(updraft_request* request, int type,
                                                           void* rows, uint64_t row_count,
                                                           uint64_t dim);

/* Hands the request over; *id (never 0) is what its events and updraft_cancel() name. On an error
 * the placed buffers are still the caller's. */
UPDRAFT_API int updraft_submit(updraft_session* session, const updraft_request* request,
                               uint64_t* id);
/* Generation stops; the request still ends with one last event. An id that has ended is ignored.
 * Any thread; without shared memory it is sent when updraft_next() runs. */
UPDRAFT_API int updraft_cancel(updraft_session* session, uint64_t id);

/* --- answers --- */

enum updraft_event_kind {
  UPDRAFT_STARTED = 1,  /* it has a place; may come again when the stream moves to another node */
  UPDRAFT_TOKENS = 2,   /* new tokens of one choice */
  UPDRAFT_FINISHED = 3, /* the end: all choices are complete */
  UPDRAFT_FAILED = 4    /* the end: it could not be served, or not to its end */
};
enum updraft_finish { UPDRAFT_FINISH_NONE = 0, UPDRAFT_FINISH_STOP = 1, UPDRAFT_FINISH_LENGTH = 2 };
enum updraft_tier { UPDRAFT_TIER_ANY = 0, UPDRAFT_TIER_EDGE = 1, UPDRAFT_TIER_CLOUD = 2 };

typedef struct updraft_logprob {
  int32_t id;
  float logprob;    /* natural log; NaN: the first token of an echoed prompt has none */
  const char* text; /* the token's bytes, maybe a part of a character */
  uint64_t text_bytes;
} updraft_logprob;

typedef struct updraft_position {
  updraft_logprob chosen;
  const updraft_logprob* top; /* the best, best first */
  uint64_t top_count;
} updraft_position;

/* Fields that a kind does not name are 0, NULL or empty texts. */
typedef struct updraft_event {
  uint64_t request; /* the id from updraft_submit() */
  int32_t kind;     /* enum updraft_event_kind */

  /* UPDRAFT_TOKENS */
  int32_t choice;
  int32_t offset; /* of ids[0] among the choice's tokens, without gaps */
  int32_t finish; /* enum updraft_finish; set on the choice's last event, which may carry no ids */
  const int32_t* ids;
  uint64_t id_count;
  const char* text; /* whole characters that became complete */
  uint64_t text_bytes;
  const updraft_position* logprobs; /* one per id when asked for */
  uint64_t logprob_count;

  /* UPDRAFT_STARTED */
  const char* node;
  const char* model;
  const char* decision; /* why there */
  int32_t tier;         /* enum updraft_tier */

  /* UPDRAFT_STARTED and UPDRAFT_FINISHED; UPDRAFT_FAILED when the prompt was too long */
  int32_t prompt_tokens;
  /* UPDRAFT_FINISHED */
  int32_t completion_tokens;
  int32_t cached_tokens;
  int64_t queued_ns; /* by the serving node's clock, since the request reached it */
  int64_t first_token_ns;
  int64_t total_ns;

  /* UPDRAFT_FAILED */
  const char* error_code; /* "context_length_exceeded", "model_not_found", "overloaded",
                             "cancelled", "node_lost", ... */
  const char* message;    /* one sentence that names the thing and the value */
  const char* param;      /* the field at fault, or empty */
  int32_t http_status;    /* what the HTTP surface would answer */
  int32_t retry_after_ms; /* > 0: worth another try after this time */
  int32_t limit_tokens;   /* the limit that prompt_tokens broke */
} updraft_event;

/* The next event of any of the session's requests. 1: *event is set and valid until the next call
 * with this session. 0: none within timeout_ms (0: only what is there; -1: wait for ever).
 * Negative: an error; UPDRAFT_ERR_LOST says that the daemon is gone, after every request in flight
 * has ended with UPDRAFT_FAILED. */
UPDRAFT_API int updraft_next(updraft_session* session, int timeout_ms, const updraft_event** event);
/* A descriptor for poll, select, epoll or an event loop: readable while updraft_next() would return
 * at once with an event or an error. Wait for it, do not read or close it; it is the same for the
 * session's whole life. Negative: a status; UPDRAFT_ERR_NO_ROOM without shared memory. */
UPDRAFT_API int updraft_fd(updraft_session* session);
/* updraft_next() that never waits: for loops that spin or have other work. */
UPDRAFT_API int updraft_poll(updraft_session* session, const updraft_event** event);

#ifdef __cplusplus
}
#endif
#endif
