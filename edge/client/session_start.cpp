#include "edge/client/session_start.h"

#include <algorithm>
#include <string>
#include <utility>
#include <variant>

#include "common/ipc/unix_socket.h"

namespace updraft {

using namespace ipc;

namespace {

std::string path_of(const LocalClientOptions& options) {
  return options.socket_path.empty() ? default_local_socket() : options.socket_path;
}

}  // namespace

Result<UniqueFd> say_hello(const LocalClientOptions& options, const std::vector<int>& fds) {
  Result<UniqueFd> socket = connect_unix(path_of(options));
  if (!socket)
    return fail(LocalFailure::kNoDaemon,
                socket.message() + " (is `updraft edge` or `updraft up` running?)");
  const LocalHello hello{kAbiVersion, kLocalProtocolVersion, options.client_name,
                         options.map_memory ? std::clamp(options.reconnect_ms, 0, 60'000) : 0};
  if (auto sent = send_message(*socket, encode_handshake(hello), fds); !sent)
    return fail(LocalFailure::kNoDaemon, sent.message());
  return socket;
}

Result<LocalWelcome> hear_welcome(const LocalClientOptions& options, const UniqueFd& socket,
                                  int timeout_ms) {
  Result<SocketMessage> answer = receive_message(socket, timeout_ms);
  if (!answer) return fail(LocalFailure::kNoDaemon, answer.message());
  if (answer->hung_up)
    return fail(LocalFailure::kNoDaemon,
                "the edge daemon at " + path_of(options) + " hung up during the handshake");
  if (answer->bytes.empty())
    return fail(LocalFailure::kTimeout,
                "the edge daemon at " + path_of(options) + " did not answer the handshake");
  Result<Handshake> decoded = decode_handshake(answer->bytes);
  if (!decoded) return fail(LocalFailure::kRefused, decoded.message());
  if (const auto* refusal = std::get_if<LocalRefusal>(&*decoded))
    return fail(LocalFailure::kRefused, "the edge daemon refused: " + refusal->message);
  auto* welcome = std::get_if<LocalWelcome>(&*decoded);
  if (welcome == nullptr)
    return fail(LocalFailure::kRefused,
                "the edge daemon answered the handshake with something else than a welcome");
  return std::move(*welcome);
}

Result<Handshaken> shake_hands(const LocalClientOptions& options, const std::vector<int>& fds) {
  Result<UniqueFd> socket = say_hello(options, fds);
  if (!socket) return socket.error();
  Result<LocalWelcome> welcome = hear_welcome(options, *socket, kHandshakeTimeoutMs);
  if (!welcome) return welcome.error();
  return Handshaken{std::move(*socket), std::move(*welcome)};
}

Error gone_error() { return fail(LocalFailure::kGone, "the edge daemon is gone"); }

}  // namespace updraft
