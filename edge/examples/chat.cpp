// Two questions at once to the edge daemon of this machine: one answer is iterated, the other comes
// to a callback.
//
//   build/examples/chat_cpp [-s SOCKET] QUESTION QUESTION
#include <cstdio>
#include <cstring>
#include <updraft_client.hpp>

using namespace updraft::client;

namespace {

int complain(const Error& error) {
  std::fprintf(stderr, "chat: %s%s%s\n", error.text.c_str(), error.code.empty() ? "" : ", ",
               error.code.c_str());
  return 1;
}

Result<Stream> ask(Session& session, const char* question) {
  Chat chat;
  chat.user(question).max_tokens(64).temperature(0);
  return session.submit(chat);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  options.client_name = "chat example (C++)";
  if (argc == 5 && std::strcmp(argv[1], "-s") == 0) options.socket_path = argv[2];
  if (argc != 3 && options.socket_path.empty()) {
    std::fprintf(stderr, "usage: chat_cpp [-s SOCKET] QUESTION QUESTION\n");
    return 2;
  }
  Result<Session> session = Session::connect(options);
  if (!session) return complain(session.error());
  Result<Stream> first = ask(*session, argv[argc - 2]);
  if (!first) return complain(first.error());
  Result<Stream> second = ask(*session, argv[argc - 1]);
  if (!second) return complain(second.error());

  // One blocking iteration; the other answer's pieces are kept meanwhile.
  while (std::optional<Piece> piece = first->next()) {
    std::fputs(piece->text.c_str(), stdout);
    std::fflush(stdout);
  }
  Result<Finish> finish = first->end();
  if (!finish) return complain(finish.error());
  std::printf("\n");
  std::fprintf(stderr, "answered by %s: %s\n", first->place().node.c_str(),
               first->place().decision.c_str());

  finish = second->each([](const Piece& piece) { std::fputs(piece.text.c_str(), stdout); });
  if (!finish) return complain(finish.error());
  std::printf("\n");
  return 0;
}
