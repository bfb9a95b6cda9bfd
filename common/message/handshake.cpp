// The handshake's FlatBuffers codec: verified first, then range-checked.
#include "common/message/handshake.h"

#include <flatbuffers/flatbuffers.h>

#include "schemas/local_generated.h"

namespace updraft {
namespace {

namespace wire = local_wire;

constexpr size_t kTextBytesMax = 1024;
constexpr size_t kClientNameBytesMax = 64;
constexpr size_t kModelsMax = 256;
constexpr int32_t kRequestsMax = 1 << 16;
constexpr int32_t kResumeMsMax = 60'000;
constexpr flatbuffers::uoffset_t kDepthMax = 8;
constexpr flatbuffers::uoffset_t kTablesMax = 512;

Result<std::string> text(const char* field, const flatbuffers::String* value, size_t bytes_max) {
  if (value == nullptr) return std::string();
  if (value->size() > bytes_max) {
    return fail(std::string("handshake: ") + field + " has " + std::to_string(value->size()) +
                " bytes, allowed are " + std::to_string(bytes_max));
  }
  std::string out = value->str();
  if (!is_utf8(out)) return fail(std::string("handshake: ") + field + " is not UTF-8");
  return out;
}

Result<Handshake> read(const wire::Hello& hello) {
  Result<std::string> name = text("client_name", hello.client_name(), kClientNameBytesMax);
  if (!name) return name.error();
  if (hello.resume_ms() < 0 || hello.resume_ms() > kResumeMsMax) {
    return fail("handshake: resume_ms " + std::to_string(hello.resume_ms()) + " is not in 0.." +
                std::to_string(kResumeMsMax));
  }
  return Handshake(LocalHello{hello.abi_version(), hello.protocol_version(),
                              std::move(name).value(), hello.resume_ms()});
}

Result<Handshake> read(const wire::Welcome& welcome) {
  LocalWelcome out;
  out.boot_epoch = welcome.boot_epoch();
  Result<std::string> token = text("session_token", welcome.session_token(), 64);
  if (!token) return token.error();
  Result<std::string> endpoint =
      text("control_endpoint", welcome.control_endpoint(), kTextBytesMax);
  if (!endpoint) return endpoint.error();
  out.session_token = std::move(token).value();
  out.control_endpoint = std::move(endpoint).value();
  out.requests_max = welcome.requests_max();
  if (out.requests_max < 1 || out.requests_max > kRequestsMax) {
    return fail("handshake: requests_max " + std::to_string(out.requests_max) + " is not in 1.." +
                std::to_string(kRequestsMax));
  }
  out.segment_bytes_max = welcome.segment_bytes_max();
  if (welcome.models() != nullptr) {
    if (welcome.models()->size() > kModelsMax)
      return fail("handshake: more than " + std::to_string(kModelsMax) + " models");
    for (const wire::Model* model : *welcome.models()) {
      Result<std::string> id = text("models.id", model->id(), kTextBytesMax);
      if (!id) return id.error();
      out.models.push_back(
          {std::move(id).value(), model->context_tokens(), model->embedding_dim()});
    }
  }
  return Handshake(std::move(out));
}

}  // namespace

std::vector<std::byte> encode_handshake(const Handshake& handshake) {
  flatbuffers::FlatBufferBuilder builder;
  wire::Body kind = wire::Body::NONE;
  flatbuffers::Offset<void> body;
  if (const auto* hello = std::get_if<LocalHello>(&handshake)) {
    kind = wire::Body::Hello;
    body = wire::CreateHello(builder, hello->abi_version, hello->protocol_version,
                             builder.CreateString(hello->client_name), hello->resume_ms)
               .Union();
  } else if (const auto* welcome = std::get_if<LocalWelcome>(&handshake)) {
    std::vector<flatbuffers::Offset<wire::Model>> models;
    for (const LocalModelName& model : welcome->models) {
      models.push_back(wire::CreateModel(builder, builder.CreateString(model.id),
                                         model.context_tokens, model.embedding_dim));
    }
    kind = wire::Body::Welcome;
    body = wire::CreateWelcome(
               builder, welcome->boot_epoch, builder.CreateString(welcome->session_token),
               builder.CreateString(welcome->control_endpoint), welcome->requests_max,
               builder.CreateVector(models), welcome->segment_bytes_max)
               .Union();
  } else if (const auto* add = std::get_if<LocalAddSegment>(&handshake)) {
    kind = wire::Body::AddSegment;
    body = wire::CreateAddSegment(builder, add->number, add->one_off).Union();
  } else if (const auto* added = std::get_if<LocalSegmentAdded>(&handshake)) {
    kind = wire::Body::SegmentAdded;
    body = wire::CreateSegmentAdded(builder, added->number).Union();
  } else {
    kind = wire::Body::Refusal;
    body = wire::CreateRefusal(builder,
                               builder.CreateString(std::get<LocalRefusal>(handshake).message))
               .Union();
  }
  wire::FinishHandshakeBuffer(builder, wire::CreateHandshake(builder, kind, body));
  const auto* begin = reinterpret_cast<const std::byte*>(builder.GetBufferPointer());
  return {begin, begin + builder.GetSize()};
}

Result<Handshake> decode_handshake(ByteView bytes) {
  // The verifier and the accessors want 8-byte alignment, which a receive buffer need not have.
  std::vector<uint64_t> aligned((bytes.size() + 7) / 8);
  if (!bytes.empty()) std::memcpy(aligned.data(), bytes.data(), bytes.size());
  const auto* data = reinterpret_cast<const uint8_t*>(aligned.data());
  flatbuffers::Verifier verifier(data, bytes.size(), kDepthMax, kTablesMax);
  if (!wire::VerifyHandshakeBuffer(verifier))
    return fail("handshake: not a well-formed message of this protocol");
  const wire::Handshake* handshake = wire::GetHandshake(data);
  switch (handshake->body_type()) {
    case wire::Body::Hello:
      return read(*handshake->body_as_Hello());
    case wire::Body::Welcome:
      return read(*handshake->body_as_Welcome());
    case wire::Body::Refusal: {
      Result<std::string> message =
          text("message", handshake->body_as_Refusal()->message(), kTextBytesMax);
      if (!message) return message.error();
      return Handshake(LocalRefusal{std::move(message).value()});
    }
    case wire::Body::AddSegment: {
      const wire::AddSegment* add = handshake->body_as_AddSegment();
      return Handshake(LocalAddSegment{add->number(), add->one_off()});
    }
    case wire::Body::SegmentAdded:
      return Handshake(LocalSegmentAdded{handshake->body_as_SegmentAdded()->number()});
    default:
      return fail("handshake: an unknown kind of message, " +
                  std::to_string(static_cast<int>(handshake->body_type())));
  }
}

}  // namespace updraft
