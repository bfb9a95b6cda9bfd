// TLS for the HTTP server and our own client, as a transformation of bytes: what came over the wire
// in, plain text out, and back. Owns no socket, so that a connection reads and writes in one way
// with and without it. OpenSSL's names stay in tls.cpp.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "common/base/result.h"

using SSL_CTX = struct ssl_ctx_st;  // OpenSSL's

namespace updraft {

// A certificate with its key, and how handshakes are made: TLS 1.2 or later, HTTP/1.1 by ALPN.
// Immutable; a reload makes another one, and connections keep theirs.
class TlsContext {
 public:
  // cert_file: PEM, the server's certificate and then those that vouch for it. key_file: PEM, its
  // private key, readable by its owner alone. Error: names the file and why (unreadable, no
  // certificate, a key of another certificate, expired, open to others).
  static Result<std::shared_ptr<const TlsContext>> load(const std::string& cert_file,
                                                        const std::string& key_file);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

 private:
  friend class TlsSession;
  friend class TlsTrust;
  struct Native;
  TlsContext();
  std::unique_ptr<Native> native_;
};

// Whom a client believes. Immutable.
class TlsTrust {
 public:
  // ca_file: PEM, the certificates that vouch for servers; empty: those of the system. Error: names
  // the file and why.
  static Result<std::shared_ptr<const TlsTrust>> load(const std::string& ca_file);
  ~TlsTrust();
  TlsTrust(const TlsTrust&) = delete;
  TlsTrust& operator=(const TlsTrust&) = delete;

 private:
  friend class TlsSession;
  TlsTrust();
  std::unique_ptr<TlsContext::Native> native_;
};

// One connection.
class TlsSession {
 public:
  // The server's side.
  explicit TlsSession(std::shared_ptr<const TlsContext> context);
  // The client's side: the handshake succeeds only with a certificate that is trusted and names
  // `host` (a name or an address). It begins with a receive() of nothing.
  TlsSession(const TlsTrust& trust, const std::string& host);
  ~TlsSession();
  TlsSession(const TlsSession&) = delete;
  TlsSession& operator=(const TlsSession&) = delete;

  enum class State {
    kOpen,
    kEnded,   // the peer has said that it sends no more
    kBroken,  // no TLS, a failed handshake, damaged bytes: of no use any more
  };
  // Takes bytes from the wire; appends what they say to `plain` and what must be answered (a
  // handshake's next step, an alert) to `wire`.
  State receive(std::string_view from_wire, std::string& plain, std::string& wire);
  // Appends to `wire` what says the begin of `plain`, at most one record; returns how much of it.
  // 0: the handshake is not done.
  size_t send(std::string_view plain, std::string& wire);
  // Appends the goodbye.
  void end(std::string& wire);
  bool established() const;
  // After kBroken: why, e.g. "certificate has expired".
  const std::string& problem() const { return problem_; }

 private:
  struct Native;
  void begin(SSL_CTX* context);
  void take_output(std::string& wire);

  const std::shared_ptr<const TlsContext> context_;  // of the server's side
  std::unique_ptr<Native> native_;
  std::string problem_;
};

}  // namespace updraft
