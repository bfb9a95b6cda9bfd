/* The client library as a C compiler sees it: connect, two images (borrowed and placed), answers,
 * settings, close. */
#include "tests/edge/client/c_program.h"

#include <string.h>

#include "updraft_client.h"

/* The whole answer of request `id` is `want`. */
static const char* expect(updraft_session* session, uint64_t id, const void* want,
                          unsigned long want_bytes) {
  const updraft_event* event;
  unsigned long got = 0;
  int started = 0;
  while (updraft_next(session, 20000, &event) == 1) {
    if (event->request != id) return "an event of another request";
    if (event->kind == UPDRAFT_STARTED) {
      started = strcmp(event->node, "echo") == 0 && event->tier == UPDRAFT_TIER_EDGE;
    } else if (event->kind == UPDRAFT_TOKENS) {
      if (got + event->text_bytes > want_bytes) return "an answer that is too long";
      if (memcmp((const char*)want + got, event->text, event->text_bytes) != 0)
        return "another answer";
      if (event->text[event->text_bytes] != '\0') return "a text without its zero byte";
      got += event->text_bytes;
    } else if (event->kind == UPDRAFT_FINISHED) {
      if (!started) return "an end without a start";
      return got == want_bytes ? NULL : "an answer that is too short";
    } else {
      return "a failure";
    }
  }
  return "no end";
}

#define HEADER_BYTES 33 /* of the PNG; the service answers with what follows */

static const char* run_session(updraft_session* session, const void* image,
                               unsigned long image_bytes) {
  updraft_request* request = updraft_request_new(UPDRAFT_CHAT);
  const char* failed;
  uint64_t id = 0;
  void* piece = NULL;
  if (request == NULL) return "a request";
  if (updraft_request_add_text(request, "x", 1) != UPDRAFT_ERR_INVALID)
    return "a part without a message";
  if (updraft_request_set_integer(request, "max_tokens", 5) != UPDRAFT_OK) return "max_tokens";
  if (updraft_request_set_number(request, "temperature", 0.5) != UPDRAFT_OK) return "temperature";
  if (updraft_request_set_text(request, "tier", "moon") != UPDRAFT_ERR_INVALID)
    return "a tier that is none";
  if (updraft_request_add_message(request, "user") != UPDRAFT_OK) return "a message";
  if (updraft_request_add_image(request, "image/png", image, image_bytes) != UPDRAFT_OK)
    return "an image";
  if (updraft_submit(session, request, &id) != UPDRAFT_OK) return updraft_error_text();
  updraft_request_free(request);
  failed = expect(session, id, (const char*)image + HEADER_BYTES, image_bytes - HEADER_BYTES);
  if (failed != NULL) return failed;

  request = updraft_request_new(UPDRAFT_CHAT);
  if (updraft_allocate(session, image_bytes + 100, &piece) != UPDRAFT_OK) return "a piece";
  memcpy(piece, image, image_bytes);
  updraft_request_add_message(request, "user");
  updraft_request_add_placed_image(request, "image/png", piece, image_bytes);
  if (updraft_submit(session, request, &id) != UPDRAFT_OK) return updraft_error_text();
  if (updraft_submit(session, request, &id) != UPDRAFT_ERR_INVALID)
    return "a piece submitted twice";
  updraft_request_free(request);
  return expect(session, id, (const char*)image + HEADER_BYTES, image_bytes - HEADER_BYTES);
}

const char* run_c_program(const char* socket_path, const void* image, unsigned long image_bytes) {
  updraft_session* session = NULL;
  const char* failed;
  if (updraft_abi_version() != UPDRAFT_CLIENT_ABI) return "the ABI version";
  if (updraft_connect(socket_path, "c program", 4 << 20, 0, &session) != UPDRAFT_OK)
    return updraft_error_text();
  if (updraft_model_count(session) != 1 || strcmp(updraft_model_name(session, 0), "echo") != 0)
    return "the models";
  failed = run_session(session, image, image_bytes);
  updraft_close(session);
  return failed;
}

#define ANSWER_IDS 12

/* The ids of the answer, and whether the usage counts every position. */
static const char* read_ids(updraft_session* session, updraft_request* request, int32_t* ids,
                            unsigned long prompt_tokens) {
  const updraft_event* event;
  unsigned long count = 0;
  uint64_t i;
  uint64_t id = 0;
  updraft_request_set_integer(request, "max_tokens", ANSWER_IDS);
  updraft_request_set_integer(request, "ignore_eos", 1);
  updraft_request_set_number(request, "temperature", 0);
  if (updraft_submit(session, request, &id) != UPDRAFT_OK) return updraft_error_text();
  updraft_request_free(request);
  while (updraft_next(session, 60000, &event) == 1) {
    if (event->kind == UPDRAFT_FAILED) return "a failure";
    for (i = 0; i < event->id_count && count < ANSWER_IDS; ++i) ids[count++] = event->ids[i];
    if (event->kind != UPDRAFT_FINISHED) continue;
    if (event->prompt_tokens != (int32_t)prompt_tokens) return "another count of prompt tokens";
    return count == ANSWER_IDS ? NULL : "too few tokens";
  }
  return "no end";
}

static const char* run_rows(updraft_session* session, const int32_t* ids, unsigned long id_count,
                            const float* rows, unsigned long dim) {
  int32_t want[ANSWER_IDS], got[ANSWER_IDS];
  const unsigned long bytes = id_count * dim * sizeof(float);
  const char* failed;
  void* piece = NULL;
  int way;
  updraft_request* request = updraft_request_new(UPDRAFT_COMPLETION);
  if (updraft_model_embedding_dim(session, 0) != (int32_t)dim) return "the model's dim";
  if (updraft_model_embedding_dim(session, 99) != 0) return "a dim of no model";
  if (updraft_request_add_part_embeddings(request, 3, rows, 1, dim) != UPDRAFT_ERR_INVALID)
    return "a type that is none";
  if (updraft_request_add_part_embeddings(request, UPDRAFT_F32, rows, 0, dim) !=
      UPDRAFT_ERR_INVALID)
    return "no rows";
  updraft_request_add_prompt_ids(request, ids, id_count);
  failed = read_ids(session, request, want, id_count);
  for (way = 0; way < 3 && failed == NULL; ++way) {
    request = updraft_request_new(UPDRAFT_COMPLETION);
    if (way == 0) {
      updraft_request_add_part_embeddings(request, UPDRAFT_F32, rows, id_count, dim);
    } else if (way == 1) {
      if (updraft_allocate(session, bytes, &piece) != UPDRAFT_OK) return "a piece";
      memcpy(piece, rows, bytes);
      updraft_request_add_placed_part_embeddings(request, UPDRAFT_F32, piece, id_count, dim);
    } else {
      updraft_request_add_part_ids(request, ids, 1);
      updraft_request_add_part_embeddings(request, UPDRAFT_F32, rows + dim, id_count - 2, dim);
      updraft_request_add_part_text(request, "", 0);
      updraft_request_add_part_ids(request, ids + id_count - 1, 1);
    }
    failed = read_ids(session, request, got, id_count);
    if (failed == NULL && memcmp(want, got, sizeof want) != 0) failed = "other tokens";
  }
  return failed;
}

const char* run_c_embeddings(const char* socket_path, const int32_t* ids, unsigned long id_count,
                             const float* rows, unsigned long dim) {
  updraft_session* session = NULL;
  const char* failed;
  if (updraft_connect(socket_path, "c rows", 0, 0, &session) != UPDRAFT_OK)
    return updraft_error_text();
  failed = run_rows(session, ids, id_count, rows, dim);
  updraft_close(session);
  return failed;
}
