/* One question to the edge daemon of this machine, the answer as it is written. C99,
 * libupdraft_client alone.
 *
 *   build/examples/chat_c [-s SOCKET] QUESTION */
#include <stdio.h>
#include <string.h>
#include <updraft_client.h>

static int complain(const char* what) {
  fprintf(stderr, "chat: %s: %s\n", what, updraft_error_text());
  return 1;
}

/* Prints the answer to request `id`; returns the exit status. */
static int print_answer(updraft_session* session, uint64_t id) {
  const updraft_event* event;
  while (updraft_next(session, -1, &event) == 1) {
    if (event->request != id) continue;
    switch (event->kind) {
      case UPDRAFT_TOKENS:
        fwrite(event->text, 1, event->text_bytes, stdout);
        fflush(stdout);
        break;
      case UPDRAFT_FINISHED:
        printf("\n");
        fprintf(stderr, "%d prompt tokens, %d answer tokens, first token after %.1f ms\n",
                event->prompt_tokens, event->completion_tokens,
                (double)event->first_token_ns / 1e6);
        return 0;
      case UPDRAFT_FAILED:
        fprintf(stderr, "chat: %s (%s)\n", event->message, event->error_code);
        return 1;
      default:
        break;
    }
  }
  return complain("the answer broke off");
}

int main(int argc, char** argv) {
  const char* socket_path = NULL;
  const char* question;
  updraft_session* session;
  updraft_request* request;
  uint64_t id;
  int status = 1;
  if (argc == 4 && strcmp(argv[1], "-s") == 0) socket_path = argv[2];
  if (argc != 2 && socket_path == NULL) {
    fprintf(stderr, "usage: chat_c [-s SOCKET] QUESTION\n");
    return 2;
  }
  question = argv[argc - 1];

  if (updraft_connect(socket_path, "chat example (C)", 0, 0, &session) != UPDRAFT_OK)
    return complain("connect");
  request = updraft_request_new(UPDRAFT_CHAT);
  if (request == NULL) return 1;
  updraft_request_set_integer(request, "max_tokens", 64);
  updraft_request_set_number(request, "temperature", 0.0);
  updraft_request_add_message(request, "user");
  updraft_request_add_text(request, question, strlen(question));
  if (updraft_submit(session, request, &id) == UPDRAFT_OK) {
    status = print_answer(session, id);
  } else {
    complain("submit");
  }
  updraft_request_free(request);
  updraft_close(session);
  return status;
}
