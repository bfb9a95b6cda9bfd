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
