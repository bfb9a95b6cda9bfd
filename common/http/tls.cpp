// See the header. Each session has two memory buffers in place of a socket.
#include "common/http/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <utility>

#include "common/auth/key_file.h"
#include "common/base/check.h"

namespace updraft {
namespace {

constexpr size_t kRecordBytesMax = 16 * 1024;
constexpr size_t kFileBytesMax = 1 << 20;

std::string last_error() {
  const unsigned long code = ERR_peek_last_error();
  const char* reason = code == 0 ? nullptr : ERR_reason_error_string(code);
  ERR_clear_error();
  return reason == nullptr ? "unknown error" : reason;
}

// HTTP/1.1 when the client names it; a client that knows other protocols only is told so by HTTP.
int choose_protocol(SSL*, const unsigned char** out, unsigned char* out_size,
                    const unsigned char* in, unsigned int in_size, void*) {
  static constexpr unsigned char kOurs[] = {8, 'h', 't', 't', 'p', '/', '1', '.', '1'};
  unsigned char* chosen = nullptr;
  if (SSL_select_next_proto(&chosen, out_size, kOurs, sizeof kOurs, in, in_size) !=
      OPENSSL_NPN_NEGOTIATED)
    return SSL_TLSEXT_ERR_NOACK;
  *out = chosen;
  return SSL_TLSEXT_ERR_OK;
}

struct FreeContext {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
};
struct FreeSession {
  void operator()(SSL* session) const { SSL_free(session); }
};

}  // namespace

struct TlsContext::Native {
  std::unique_ptr<SSL_CTX, FreeContext> context;
};
struct TlsSession::Native {
  std::unique_ptr<SSL, FreeSession> session;
  BIO* from_wire = nullptr;  // the session's
  BIO* to_wire = nullptr;
};

TlsContext::TlsContext() : native_(std::make_unique<Native>()) {}
TlsContext::~TlsContext() = default;

Result<std::shared_ptr<const TlsContext>> TlsContext::load(const std::string& cert_file,
                                                           const std::string& key_file) {
  // Read by us first: for errors that say what is wrong, and to see that the key is a secret.
  if (auto cert = read_key_file(cert_file, kFileBytesMax, false); !cert) return cert.error("TLS");
  if (auto key = read_key_file(key_file, kFileBytesMax, true); !key) return key.error("TLS");
  ERR_clear_error();
  std::shared_ptr<TlsContext> made(new TlsContext());
  made->native_->context.reset(SSL_CTX_new(TLS_server_method()));
  SSL_CTX* context = made->native_->context.get();
  if (context == nullptr) return fail("TLS: " + last_error());
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_options(
      context, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION | SSL_OP_CIPHER_SERVER_PREFERENCE);
  SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                                SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  // No state of earlier sessions is kept here; tickets carry it.
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_alpn_select_cb(context, choose_protocol, nullptr);
  if (SSL_CTX_use_certificate_chain_file(context, cert_file.c_str()) != 1)
    return fail("TLS: " + cert_file + ": not a certificate in PEM: " + last_error());
  if (X509_cmp_current_time(X509_get0_notAfter(SSL_CTX_get0_certificate(context))) < 0)
    return fail("TLS: " + cert_file + ": the certificate has expired");
  if (SSL_CTX_use_PrivateKey_file(context, key_file.c_str(), SSL_FILETYPE_PEM) != 1)
    return fail("TLS: " + key_file + ": not the private key of " + cert_file + ": " + last_error());
  return std::shared_ptr<const TlsContext>(std::move(made));
}

TlsTrust::TlsTrust() : native_(std::make_unique<TlsContext::Native>()) {}
TlsTrust::~TlsTrust() = default;

Result<std::shared_ptr<const TlsTrust>> TlsTrust::load(const std::string& ca_file) {
  ERR_clear_error();
  std::shared_ptr<TlsTrust> made(new TlsTrust());
  made->native_->context.reset(SSL_CTX_new(TLS_client_method()));
  SSL_CTX* context = made->native_->context.get();
  if (context == nullptr) return fail("TLS: " + last_error());
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_options(context, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER, nullptr);
  if (ca_file.empty()) {
    if (SSL_CTX_set_default_verify_paths(context) != 1)
      return fail("TLS: the system's certificates: " + last_error());
    return std::shared_ptr<const TlsTrust>(std::move(made));
  }
  if (auto file = read_key_file(ca_file, kFileBytesMax, false); !file) return file.error("TLS");
  if (SSL_CTX_load_verify_file(context, ca_file.c_str()) != 1)
    return fail("TLS: " + ca_file + ": no certificate in PEM: " + last_error());
  return std::shared_ptr<const TlsTrust>(std::move(made));
}

TlsSession::TlsSession(const TlsTrust& trust, const std::string& host)
    : native_(std::make_unique<Native>()) {
  begin(trust.native_->context.get());
  SSL* session = native_->session.get();
  static constexpr unsigned char kProtocols[] = {8, 'h', 't', 't', 'p', '/', '1', '.', '1'};
  bool good = SSL_set_alpn_protos(session, kProtocols, sizeof kProtocols) == 0;
  if (X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(session), host.c_str()) != 1) {
    ERR_clear_error();  // a name, then
    SSL_set_hostflags(session, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    good = good && SSL_set1_host(session, host.c_str()) == 1 &&
           SSL_set_tlsext_host_name(session, host.c_str()) == 1;
  }
  UPDRAFT_CHECK(good, "out of memory");
  SSL_set_connect_state(session);
}

TlsSession::TlsSession(std::shared_ptr<const TlsContext> context)
    : context_(std::move(context)), native_(std::make_unique<Native>()) {
  begin(context_->native_->context.get());
  SSL_set_accept_state(native_->session.get());
}

void TlsSession::begin(SSL_CTX* context) {
  native_->session.reset(SSL_new(context));
  native_->from_wire = BIO_new(BIO_s_mem());
  native_->to_wire = BIO_new(BIO_s_mem());
  UPDRAFT_CHECK(native_->session && native_->from_wire && native_->to_wire, "out of memory");
  SSL_set_bio(native_->session.get(), native_->from_wire, native_->to_wire);
}

TlsSession::~TlsSession() = default;

bool TlsSession::established() const { return SSL_is_init_finished(native_->session.get()) == 1; }

void TlsSession::take_output(std::string& wire) {
  char buffer[kRecordBytesMax];
  int got = 0;
  while ((got = BIO_read(native_->to_wire, buffer, sizeof buffer)) > 0)
    wire.append(buffer, static_cast<size_t>(got));
}

TlsSession::State TlsSession::receive(std::string_view from_wire, std::string& plain,
                                      std::string& wire) {
  SSL* session = native_->session.get();
  const int fed =
      BIO_write(native_->from_wire, from_wire.data(), static_cast<int>(from_wire.size()));
  UPDRAFT_CHECK(fed == static_cast<int>(from_wire.size()), "out of memory");
  char buffer[kRecordBytesMax];
  State state = State::kOpen;
  while (true) {
    ERR_clear_error();
    const int got = SSL_read(session, buffer, sizeof buffer);
    if (got > 0) {
      plain.append(buffer, static_cast<size_t>(got));
      continue;
    }
    const int why = SSL_get_error(session, got);
    if (why == SSL_ERROR_ZERO_RETURN) {
      state = State::kEnded;
    } else if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE) {
      state = State::kBroken;
      const long verdict = SSL_get_verify_result(session);
      problem_ = verdict == X509_V_OK ? last_error() : X509_verify_cert_error_string(verdict);
    }
    break;
  }
  ERR_clear_error();
  take_output(wire);
  return state;
}

size_t TlsSession::send(std::string_view plain, std::string& wire) {
  if (!established() || plain.empty()) return 0;
  ERR_clear_error();
  const int sent = SSL_write(native_->session.get(), plain.data(),
                             static_cast<int>(std::min(plain.size(), kRecordBytesMax)));
  take_output(wire);
  return sent > 0 ? static_cast<size_t>(sent) : 0;
}

void TlsSession::end(std::string& wire) {
  if (!established()) return;
  ERR_clear_error();
  SSL_shutdown(native_->session.get());
  ERR_clear_error();
  take_output(wire);
}

}  // namespace updraft
