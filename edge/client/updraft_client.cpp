// The C ABI over LocalClient: opaque handles, borrowed bytes, statuses instead of Results. No
// exception leaves it.
//
// Owner: the thread that is inside a session; see the header for what the others get.
#include "edge/client/updraft_client.h"

#include <pthread.h>

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "edge/client/local_client.h"

using updraft::ChatMessage;
using updraft::ContentPart;
using updraft::EmbeddingRows;
using updraft::ErrorCode;
using updraft::Event;
using updraft::LocalClient;
using updraft::PromptPart;
using updraft::Request;
using updraft::Result;
using updraft::ipc::SpanTarget;

namespace {

constexpr uint64_t kPlacedBytesMin = 4096;  // smaller parts travel inside the request's frame
constexpr uint64_t kPayloadBytesDefault = 8 << 20;
constexpr uint64_t kPayloadBytesMax = uint64_t{1} << 40;
constexpr int32_t kReconnectMsMax = 60'000;

thread_local std::string error_text;

int refuse(int status, std::string why) {
  error_text = std::move(why);
  return status;
}

// fork() makes every session that exists then a stranger in the child.
std::atomic<uint64_t> fork_count{0};
uint64_t current_fork() {
  static const bool watching = pthread_atfork(nullptr, nullptr, [] {
                                 fork_count.fetch_add(1, std::memory_order_relaxed);
                               }) == 0;
  (void)watching;
  return fork_count.load(std::memory_order_relaxed);
}

// Runs `body`; what it throws becomes a status.
template <typename Body>
int guarded(Body&& body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    try {
      return refuse(UPDRAFT_ERR_NO_MEMORY, "out of memory");
    } catch (...) {
      return UPDRAFT_ERR_NO_MEMORY;
    }
  } catch (const std::exception& e) {
    return refuse(UPDRAFT_ERR_NO_MEMORY, e.what());
  }
}

const char* error_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidRequest:
      return "invalid_request";
    case ErrorCode::kContextLength:
    case ErrorCode::kRejectedTooLong:
      return "context_length_exceeded";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kAuthentication:
      return "authentication";
    case ErrorCode::kForbidden:
      return "forbidden";
    case ErrorCode::kModelNotFound:
      return "model_not_found";
    case ErrorCode::kPayloadTooLarge:
      return "payload_too_large";
    case ErrorCode::kRateLimited:
      return "rate_limited";
    case ErrorCode::kOverloaded:
    case ErrorCode::kRejectedBusy:
      return "overloaded";
    case ErrorCode::kDeadline:
      return "deadline";
    case ErrorCode::kNodeLost:
      return "node_lost";
    case ErrorCode::kCancelled:
      return "cancelled";
    case ErrorCode::kInternal:
      break;
  }
  return "internal";
}

int status_of(int kind) {
  switch (static_cast<updraft::LocalFailure>(kind)) {
    case updraft::LocalFailure::kNoDaemon:
      return UPDRAFT_ERR_NO_DAEMON;
    case updraft::LocalFailure::kTimeout:
      return UPDRAFT_ERR_TIMEOUT;
    case updraft::LocalFailure::kRefused:
      return UPDRAFT_ERR_REFUSED;
    case updraft::LocalFailure::kGone:
      return UPDRAFT_ERR_LOST;
    case updraft::LocalFailure::kBusy:
      return UPDRAFT_ERR_BUSY;
    case updraft::LocalFailure::kNoRoom:
      return UPDRAFT_ERR_NO_ROOM;
    case updraft::LocalFailure::kTooLarge:
      return UPDRAFT_ERR_TOO_LARGE;
    case updraft::LocalFailure::kBadArgument:
      return UPDRAFT_ERR_INVALID;
    case updraft::LocalFailure::kForked:
      return UPDRAFT_ERR_FORKED;
    case updraft::LocalFailure::kNoMemory:
      break;
  }
  return UPDRAFT_ERR_NO_MEMORY;
}

template <typename T>
int refuse(const Result<T>& failed) {
  return refuse(status_of(failed.kind()), failed.message());
}

updraft_logprob view_of(const updraft::TokenLogprob& entry) {
  return {entry.id, entry.logprob, entry.text.c_str(), entry.text.size()};
}

}  // namespace

struct updraft_session {
  std::unique_ptr<LocalClient> client;
  bool mapped = true;
  std::map<void*, uint64_t> buffers;  // pieces that are the caller's, with their bytes
  std::atomic<bool> inside = false;
  uint64_t born_in_fork = 0;
  // What the newest event's pointers point into.
  std::optional<Event> event;
  std::vector<updraft_position> positions;
  std::vector<updraft_logprob> top;
  updraft_event view{};

  void show(uint64_t id, Event newest);
};

struct updraft_request {
  struct Part {
    SpanTarget target = SpanTarget::kPart;
    uint32_t index = 0;  // of the message or the prompt
    uint32_t part = 0;   // of the message
    const void* data = nullptr;
    uint64_t bytes = 0;
    bool placed = false;
  };
  Request request;
  std::vector<Part> parts;  // where the bytes of its parts and prompts lie
};

namespace {

// A thread's stay inside a session.
class Visit {
 public:
  explicit Visit(updraft_session* session) : session_(session) {
    if (session == nullptr) {
      status_ = refuse(UPDRAFT_ERR_INVALID, "the session is NULL");
    } else if (session->born_in_fork != current_fork()) {
      status_ = refuse(UPDRAFT_ERR_FORKED,
                       "the session was opened before fork() and belongs to the parent process");
    } else if (session->inside.exchange(true, std::memory_order_acquire)) {
      // Pairs with the release in ~Visit(): the next thread sees what this one did.
      status_ = refuse(UPDRAFT_ERR_THREAD, "another thread is inside this session");
    } else {
      entered_ = true;
    }
  }
  ~Visit() {
    if (entered_) session_->inside.store(false, std::memory_order_release);
  }
  Visit(const Visit&) = delete;
  Visit& operator=(const Visit&) = delete;
  explicit operator bool() const { return entered_; }
  int status() const { return status_; }

 private:
  updraft_session* session_;
  bool entered_ = false;
  int status_ = UPDRAFT_OK;
};

int add_part(updraft_request* request, ContentPart part, const void* data, uint64_t bytes,
             bool placed) {
  if (request == nullptr) return refuse(UPDRAFT_ERR_INVALID, "the request is NULL");
  if (data == nullptr && bytes > 0)
    return refuse(UPDRAFT_ERR_INVALID, "a part of " + std::to_string(bytes) + " bytes at NULL");
  std::vector<ChatMessage>& messages = request->request.messages;
  if (messages.empty())
    return refuse(UPDRAFT_ERR_INVALID,
                  "a part without a message: call updraft_request_add_message() first");
  messages.back().parts.push_back(std::move(part));
  request->parts.push_back({SpanTarget::kPart, static_cast<uint32_t>(messages.size() - 1),
                            static_cast<uint32_t>(messages.back().parts.size() - 1), data, bytes,
                            placed});
  return UPDRAFT_OK;
}

// A prompt whose bytes lie in a piece of shared memory; `prompts` are the request's texts or its
// lists of ids.
template <typename Prompt>
int add_placed_prompt(updraft_request* request, std::vector<Prompt> Request::*prompts,
                      SpanTarget target, const void* data, uint64_t bytes) {
  if (request == nullptr || data == nullptr)
    return refuse(UPDRAFT_ERR_INVALID, "the request or the prompt is NULL");
  std::vector<Prompt>& list = request->request.*prompts;
  list.emplace_back();
  request->parts.push_back({target, static_cast<uint32_t>(list.size() - 1), 0, data, bytes, true});
  return UPDRAFT_OK;
}

// Rows of the next part of the prompt; `data` is borrowed until the submit, like a message's part.
int add_embeddings(updraft_request* request, int type, const void* data, uint64_t row_count,
                   uint64_t dim, bool placed) {
  if (request == nullptr || data == nullptr)
    return refuse(UPDRAFT_ERR_INVALID, "the request or its rows are NULL");
  if (type < UPDRAFT_F32 || type > UPDRAFT_BF16)
    return refuse(UPDRAFT_ERR_INVALID, "there is no type of embeddings " + std::to_string(type));
  if (row_count < 1 || row_count > INT32_MAX || dim < 1 || dim > INT32_MAX) {
    return refuse(UPDRAFT_ERR_INVALID, "embeddings of " + std::to_string(row_count) + " rows of " +
                                           std::to_string(dim) + " values");
  }
  PromptPart part;
  part.kind = PromptPart::Kind::kEmbeddings;
  part.rows.type = static_cast<EmbeddingRows::Type>(type);
  part.rows.row_count = static_cast<int32_t>(row_count);
  part.rows.dim = static_cast<int32_t>(dim);
  const uint64_t bytes = row_count * dim * updraft::value_bytes(part.rows.type);
  std::vector<PromptPart>& parts = request->request.prompt_parts;
  parts.push_back(std::move(part));
  request->parts.push_back(
      {SpanTarget::kPromptPart, static_cast<uint32_t>(parts.size() - 1), 0, data, bytes, placed});
  return UPDRAFT_OK;
}

ContentPart image_part(const char* mime) {
  ContentPart part;
  part.kind = ContentPart::Kind::kImage;
  part.mime = mime == nullptr ? "" : mime;
  return part;
}

int unknown_setting(const char* kind, const char* name) {
  return refuse(UPDRAFT_ERR_INVALID,
                "there is no " + std::string(kind) + " setting \"" + name + "\"");
}
int bad_value(const char* name, const std::string& value, const char* allowed) {
  return refuse(UPDRAFT_ERR_INVALID, std::string(name) + " = " + value + " is not " + allowed);
}

// The pieces of shared memory that one submit names, and those it made itself.
struct Placement {
  std::vector<LocalClient::PlacedPart> parts;
  std::vector<void*> taken;               // from the caller
  std::vector<LocalClient::Buffer> made;  // by place()
};

int place_part(updraft_session& session, const updraft_request::Part& part, Request& request,
               Placement& out) {
  std::byte* const data = static_cast<std::byte*>(const_cast<void*>(part.data));
  if (part.placed) {
    const auto found = session.buffers.find(data);
    if (found == session.buffers.end())
      return refuse(UPDRAFT_ERR_INVALID,
                    "a placed part does not begin a piece of this session's shared memory, or was "
                    "submitted already");
    if (part.bytes == 0 || part.bytes > found->second) {
      return refuse(UPDRAFT_ERR_INVALID, "a placed part of " + std::to_string(part.bytes) +
                                             " bytes in a piece of " +
                                             std::to_string(found->second));
    }
    for (const void* other : out.taken) {
      if (other == data)
        return refuse(UPDRAFT_ERR_INVALID, "one piece of shared memory is placed twice");
    }
    out.taken.push_back(data);
    out.parts.push_back({part.index, part.part, {{data, part.bytes}}, part.target});
    return UPDRAFT_OK;
  }
  if (session.mapped && part.bytes > kPlacedBytesMin) {
    Result<LocalClient::Buffer> piece = session.client->allocate(part.bytes);
    if (!piece) return refuse(piece);
    out.made.push_back(*piece);
    std::memcpy(piece->bytes.data(), data, part.bytes);
    out.parts.push_back({part.index, part.part, *piece, part.target});
    return UPDRAFT_OK;
  }
  std::string bytes(static_cast<const char*>(part.data), part.bytes);
  if (part.target == SpanTarget::kPromptPart) {
    request.prompt_parts[part.index].rows.bytes = std::move(bytes);
    return UPDRAFT_OK;
  }
  ContentPart& target = request.messages[part.index].parts[part.part];
  if (target.kind == ContentPart::Kind::kText) {
    target.text = std::move(bytes);
  } else {
    target.bytes = std::move(bytes);
  }
  return UPDRAFT_OK;
}

int hand_over(updraft_session& session, const updraft_request& from, uint64_t* id) {
  Request request = from.request;
  const auto& models = session.client->welcome().models;
  if (request.model.empty() && !models.empty()) request.model = models.front().id;
  Placement placement;
  int status = UPDRAFT_OK;
  for (const updraft_request::Part& part : from.parts) {
    status = place_part(session, part, request, placement);
    if (status != UPDRAFT_OK) break;
  }
  if (status == UPDRAFT_OK) {
    const Result<uint32_t> handle =
        session.client->submit(std::move(request), std::move(placement.parts));
    if (handle) {
      for (void* piece : placement.taken) session.buffers.erase(piece);
      *id = uint64_t{1} << 32 | *handle;  // never 0
      return UPDRAFT_OK;
    }
    status = refuse(handle);
  }
  for (const LocalClient::Buffer& piece : placement.made) session.client->release(piece);
  return status;
}

using Allocate = Result<LocalClient::Buffer> (LocalClient::*)(uint64_t);
int allocate(updraft_session* session, Allocate how, uint64_t bytes, void** data) {
  const Visit visit(session);
  if (!visit) return visit.status();
  if (data == nullptr || bytes == 0)
    return refuse(UPDRAFT_ERR_INVALID, "a piece of 0 bytes, or no place for its address");
  Result<LocalClient::Buffer> piece = (session->client.get()->*how)(bytes);
  if (!piece) return refuse(UPDRAFT_ERR_NO_ROOM, piece.message());
  session->buffers.emplace(piece->bytes.data(), bytes);
  *data = piece->bytes.data();
  return UPDRAFT_OK;
}

}  // namespace

void updraft_session::show(uint64_t id, Event newest) {
  event.emplace(std::move(newest));
  positions.clear();
  top.clear();
  view = {};
  view.request = id;
  view.text = view.node = view.model = view.decision = view.error_code = view.message = view.param =
      "";
  if (const auto* started = std::get_if<updraft::Started>(&*event)) {
    view.kind = UPDRAFT_STARTED;
    view.node = started->node_id.c_str();
    view.model = started->model.c_str();
    view.decision = started->decision.c_str();
    view.tier = static_cast<int32_t>(started->tier);
    view.prompt_tokens = started->prompt_tokens;
  } else if (const auto* chunk = std::get_if<updraft::TokenChunk>(&*event)) {
    view.kind = UPDRAFT_TOKENS;
    view.choice = chunk->choice;
    view.offset = chunk->offset;
    if (chunk->finish) {
      view.finish = *chunk->finish == updraft::FinishReason::kStop ? UPDRAFT_FINISH_STOP
                                                                   : UPDRAFT_FINISH_LENGTH;
    }
    view.ids = chunk->ids.data();
    view.id_count = chunk->ids.size();
    view.text = chunk->text.c_str();
    view.text_bytes = chunk->text.size();
    size_t alternatives = 0;
    for (const auto& position : chunk->logprobs) alternatives += position.top.size();
    top.reserve(alternatives);  // the positions keep pointers into it
    for (const auto& position : chunk->logprobs) {
      const size_t first = top.size();
      for (const auto& entry : position.top) top.push_back(view_of(entry));
      positions.push_back({view_of(position.chosen), top.data() + first, position.top.size()});
    }
    view.logprobs = positions.data();
    view.logprob_count = positions.size();
  } else if (const auto* finished = std::get_if<updraft::Finished>(&*event)) {
    view.kind = UPDRAFT_FINISHED;
    view.prompt_tokens = finished->usage.prompt_tokens;
    view.completion_tokens = finished->usage.completion_tokens;
    view.cached_tokens = finished->usage.cached_tokens;
    view.queued_ns = finished->timings.queued_ns;
    view.first_token_ns = finished->timings.first_token_ns;
    view.total_ns = finished->timings.total_ns;
  } else {
    const auto& error = std::get<updraft::RequestError>(*event);
    view.kind = UPDRAFT_FAILED;
    view.error_code = error_name(error.code);
    view.message = error.message.c_str();
    view.param = error.param.c_str();
    view.http_status = updraft::http_status(error.code);
    view.retry_after_ms = error.retry_after_ms;
    view.prompt_tokens = error.prompt_tokens;
    view.limit_tokens = error.limit_tokens;
  }
}

extern "C" {

const char* updraft_version(void) { return UPDRAFT_VERSION; }
uint32_t updraft_abi_version(void) { return UPDRAFT_CLIENT_ABI; }
const char* updraft_error_text(void) { return error_text.c_str(); }

const char* updraft_status_name(int status) {
  switch (status) {
    case UPDRAFT_OK:
      return "UPDRAFT_OK";
    case UPDRAFT_ERR_FORKED:
      return "UPDRAFT_ERR_FORKED";
    case UPDRAFT_ERR_BUSY:
      return "UPDRAFT_ERR_BUSY";
    case UPDRAFT_ERR_NO_MEMORY:
      return "UPDRAFT_ERR_NO_MEMORY";
    case UPDRAFT_ERR_REFUSED:
      return "UPDRAFT_ERR_REFUSED";
    case UPDRAFT_ERR_THREAD:
      return "UPDRAFT_ERR_THREAD";
    case UPDRAFT_ERR_INVALID:
      return "UPDRAFT_ERR_INVALID";
    case UPDRAFT_ERR_NO_ROOM:
      return "UPDRAFT_ERR_NO_ROOM";
    case UPDRAFT_ERR_TOO_LARGE:
      return "UPDRAFT_ERR_TOO_LARGE";
    case UPDRAFT_ERR_LOST:
      return "UPDRAFT_ERR_LOST";
    case UPDRAFT_ERR_TIMEOUT:
      return "UPDRAFT_ERR_TIMEOUT";
    case UPDRAFT_ERR_NO_DAEMON:
      return "UPDRAFT_ERR_NO_DAEMON";
    default:
      return "unknown";
  }
}

int updraft_connect(const char* socket_path, const char* client_name, uint64_t payload_bytes,
                    uint32_t flags, updraft_session** session) {
  return updraft_connect_reconnecting(socket_path, client_name, payload_bytes, flags, 0, session);
}

int updraft_connect_reconnecting(const char* socket_path, const char* client_name,
                                 uint64_t payload_bytes, uint32_t flags, int32_t reconnect_ms,
                                 updraft_session** session) {
  return guarded([&] {
    if (session == nullptr) return refuse(UPDRAFT_ERR_INVALID, "the place for the session is NULL");
    *session = nullptr;
    if ((flags & ~uint32_t{UPDRAFT_NO_SHARED_MEMORY}) != 0)
      return refuse(UPDRAFT_ERR_INVALID, "flags = " + std::to_string(flags) + " has unknown bits");
    if (payload_bytes > kPayloadBytesMax)
      return refuse(UPDRAFT_ERR_INVALID,
                    "payload_bytes = " + std::to_string(payload_bytes) + " is more than 1 TiB");
    if (reconnect_ms < 0 || reconnect_ms > kReconnectMsMax)
      return refuse(UPDRAFT_ERR_INVALID, "reconnect_ms = " + std::to_string(reconnect_ms) +
                                             " is not in 0 to " + std::to_string(kReconnectMsMax));
    if (reconnect_ms > 0 && (flags & UPDRAFT_NO_SHARED_MEMORY) != 0)
      return refuse(UPDRAFT_ERR_INVALID,
                    "a session without shared memory cannot be connected again (reconnect_ms = " +
                        std::to_string(reconnect_ms) + ")");
    updraft::LocalClientOptions options;
    if (socket_path != nullptr) options.socket_path = socket_path;
    if (client_name != nullptr) options.client_name = client_name;
    options.payload_bytes = payload_bytes == 0 ? kPayloadBytesDefault : payload_bytes;
    options.map_memory = (flags & UPDRAFT_NO_SHARED_MEMORY) == 0;
    options.reconnect_ms = reconnect_ms;
    auto made = std::make_unique<updraft_session>();
    made->born_in_fork = current_fork();
    made->mapped = options.map_memory;
    Result<std::unique_ptr<LocalClient>> client = LocalClient::connect(options);
    if (!client) return refuse(client);
    made->client = std::move(client).value();
    *session = made.release();
    return int{UPDRAFT_OK};
  });
}

void updraft_close(updraft_session* session) {
  if (session == nullptr) return;
  // In a forked child the client's sockets and threads are the parent's: nothing of them may be
  // touched.
  if (session->born_in_fork != current_fork()) return;
  delete session;
}

uint32_t updraft_model_count(const updraft_session* session) {
  return session == nullptr ? 0 : static_cast<uint32_t>(session->client->welcome().models.size());
}
const char* updraft_model_name(const updraft_session* session, uint32_t index) {
  return index < updraft_model_count(session) ? session->client->welcome().models[index].id.c_str()
                                              : nullptr;
}
int32_t updraft_model_context_tokens(const updraft_session* session, uint32_t index) {
  return index < updraft_model_count(session)
             ? session->client->welcome().models[index].context_tokens
             : 0;
}
int32_t updraft_model_embedding_dim(const updraft_session* session, uint32_t index) {
  return index < updraft_model_count(session)
             ? session->client->welcome().models[index].embedding_dim
             : 0;
}
uint32_t updraft_requests_max(const updraft_session* session) {
  return session == nullptr ? 0 : static_cast<uint32_t>(session->client->welcome().requests_max);
}

int updraft_allocate(updraft_session* session, uint64_t bytes, void** data) {
  return guarded([&] { return allocate(session, &LocalClient::allocate, bytes, data); });
}
int updraft_allocate_once(updraft_session* session, uint64_t bytes, void** data) {
  return guarded([&] { return allocate(session, &LocalClient::allocate_once, bytes, data); });
}

int updraft_release(updraft_session* session, void* data) {
  return guarded([&] {
    const Visit visit(session);
    if (!visit) return visit.status();
    const auto found = session->buffers.find(data);
    if (found == session->buffers.end())
      return refuse(UPDRAFT_ERR_INVALID,
                    "this is no piece of the session's shared memory, or it was submitted");
    session->client->release({{static_cast<std::byte*>(data), found->second}});
    session->buffers.erase(found);
    return int{UPDRAFT_OK};
  });
}

updraft_request* updraft_request_new(int kind) {
  if (kind != UPDRAFT_CHAT && kind != UPDRAFT_COMPLETION) return nullptr;
  auto* request = new (std::nothrow) updraft_request;
  if (request != nullptr)
    request->request.kind =
        kind == UPDRAFT_CHAT ? Request::Kind::kChat : Request::Kind::kCompletion;
  return request;
}
void updraft_request_free(updraft_request* request) { delete request; }

int updraft_request_set_text(updraft_request* request, const char* name, const char* value) {
  return guarded([&] {
    if (request == nullptr || name == nullptr || value == nullptr)
      return refuse(UPDRAFT_ERR_INVALID, "request, name or value is NULL");
    const std::string_view setting = name;
    const std::string_view text = value;
    updraft::Hints& hints = request->request.hints;
    if (setting == "model") {
      request->request.model = text;
    } else if (setting == "session") {
      hints.session = text;
    } else if (setting == "trace") {
      request->request.trace = text;
    } else if (setting == "tier") {
      if (text == "any")
        hints.tier = updraft::Tier::kAny;
      else if (text == "edge")
        hints.tier = updraft::Tier::kEdge;
      else if (text == "cloud")
        hints.tier = updraft::Tier::kCloud;
      else
        return bad_value(name, value, "any, edge or cloud");
    } else if (setting == "residency") {
      if (text != "any" && text != "local-only") return bad_value(name, value, "any or local-only");
      hints.local_only = text == "local-only";
    } else if (setting == "priority") {
      if (text == "system")
        hints.priority = updraft::Priority::kSystem;
      else if (text == "interactive")
        hints.priority = updraft::Priority::kInteractive;
      else if (text == "default")
        hints.priority = updraft::Priority::kDefault;
      else if (text == "bulk")
        hints.priority = updraft::Priority::kBulk;
      else
        return bad_value(name, value, "system, interactive, default or bulk");
    } else {
      return unknown_setting("text", name);
    }
    return int{UPDRAFT_OK};
  });
}

int updraft_request_set_integer(updraft_request* request, const char* name, int64_t value) {
  return guarded([&] {
    if (request == nullptr || name == nullptr)
      return refuse(UPDRAFT_ERR_INVALID, "request or name is NULL");
    const std::string_view setting = name;
    updraft::Sampling& sampling = request->request.sampling;
    const auto small = static_cast<int32_t>(value);
    const bool fits = small == value;
    const bool truth = value == 0 || value == 1;
    struct Flag {
      const char* name;
      bool* place;
    };
    for (const Flag& flag :
         {Flag{"logprobs", &sampling.logprobs}, Flag{"echo", &request->request.echo},
          Flag{"ignore_eos", &sampling.ignore_eos},
          Flag{"enable_thinking", &request->request.enable_thinking}}) {
      if (setting != flag.name) continue;
      if (!truth) return bad_value(name, std::to_string(value), "0 or 1");
      *flag.place = value == 1;
      return int{UPDRAFT_OK};
    }
    if (setting == "seed") {
      sampling.seed = static_cast<uint64_t>(value);
      return int{UPDRAFT_OK};
    }
    if (setting == "deadline_ms") {
      request->request.hints.deadline_ms = value;
      return int{UPDRAFT_OK};
    }
    if (setting != "max_tokens" && setting != "top_k" && setting != "n" &&
        setting != "top_logprobs")
      return unknown_setting("integer", name);
    if (!fits) return bad_value(name, std::to_string(value), "in the range of 32 bits");
    if (setting == "max_tokens") sampling.max_tokens = small;
    if (setting == "top_k") sampling.top_k = small;
    if (setting == "n") request->request.choice_count = small;
    if (setting == "top_logprobs") sampling.top_logprobs = small;
    return int{UPDRAFT_OK};
  });
}

int updraft_request_set_number(updraft_request* request, const char* name, double value) {
  return guarded([&] {
    if (request == nullptr || name == nullptr)
      return refuse(UPDRAFT_ERR_INVALID, "request or name is NULL");
    updraft::Sampling& sampling = request->request.sampling;
    struct Number {
      const char* name;
      float* place;
    };
    for (const Number& number : {Number{"temperature", &sampling.temperature},
                                 Number{"top_p", &sampling.top_p}, Number{"min_p", &sampling.min_p},
                                 Number{"repetition_penalty", &sampling.repetition_penalty},
                                 Number{"frequency_penalty", &sampling.frequency_penalty},
                                 Number{"presence_penalty", &sampling.presence_penalty}}) {
      if (std::strcmp(name, number.name) != 0) continue;
      *number.place = static_cast<float>(value);
      return int{UPDRAFT_OK};
    }
    return unknown_setting("number", name);
  });
}

int updraft_request_add_stop(updraft_request* request, const char* text, uint64_t bytes) {
  return guarded([&] {
    if (request == nullptr || text == nullptr)
      return refuse(UPDRAFT_ERR_INVALID, "request or text is NULL");
    request->request.sampling.stop.emplace_back(text, bytes);
    return int{UPDRAFT_OK};
  });
}

int updraft_request_add_logit_bias(updraft_request* request, int32_t token_id, double bias) {
  return guarded([&] {
    if (request == nullptr) return refuse(UPDRAFT_ERR_INVALID, "the request is NULL");
    request->request.sampling.logit_bias.emplace_back(token_id, static_cast<float>(bias));
    return int{UPDRAFT_OK};
  });
}

int updraft_request_add_message(updraft_request* request, const char* role) {
  return guarded([&] {
    if (request == nullptr || role == nullptr)
      return refuse(UPDRAFT_ERR_INVALID, "request or role is NULL");
    request->request.messages.push_back({role, {}});
    return int{UPDRAFT_OK};
  });
}

int updraft_request_add_text(updraft_request* request, const char* text, uint64_t bytes) {
  return guarded([&] { return add_part(request, ContentPart{}, text, bytes, false); });
}
int updraft_request_add_image(updraft_request* request, const char* mime, const void* data,
                              uint64_t bytes) {
  return guarded([&] { return add_part(request, image_part(mime), data, bytes, false); });
}
int updraft_request_add_placed_text(updraft_request* request, void* data, uint64_t bytes) {
  return guarded([&] { return add_part(request, ContentPart{}, data, bytes, true); });
}
int updraft_request_add_placed_image(updraft_request* request, const char* mime, void* data,
                                     uint64_t bytes) {
  return guarded([&] { return add_part(request, image_part(mime), data, bytes, true); });
}

int updraft_request_add_prompt(updraft_request* request, const char* text, uint64_t bytes) {
  return guarded([&] {
    if (request == nullptr || text == nullptr)
      return refuse(UPDRAFT_ERR_INVALID, "request or text is NULL");
    request->request.prompts.emplace_back(text, bytes);
    return int{UPDRAFT_OK};
  });
}
int updraft_request_add_prompt_ids(updraft_request* request, const int32_t* ids,
                                   uint64_t id_count) {
  return guarded([&] {
    if (request == nullptr || ids == nullptr)
      return refuse(UPDRAFT_ERR_INVALID, "request or ids is NULL");
    request->request.prompt_ids.emplace_back(ids, ids + id_count);
    return int{UPDRAFT_OK};
  });
}
int updraft_request_add_placed_prompt(updraft_request* request, void* data, uint64_t bytes) {
  return guarded([&] {
    return add_placed_prompt(request, &Request::prompts, SpanTarget::kPrompt, data, bytes);
  });
}
int updraft_request_add_placed_prompt_ids(updraft_request* request, int32_t* ids,
                                          uint64_t id_count) {
  return guarded([&] {
    return add_placed_prompt(request, &Request::prompt_ids, SpanTarget::kPromptIds, ids,
                             id_count * sizeof(int32_t));
  });
}

int updraft_request_add_part_text(updraft_request* request, const char* text, uint64_t bytes) {
  return guarded([&] {
    if (request == nullptr || (text == nullptr && bytes > 0))
      return refuse(UPDRAFT_ERR_INVALID, "request or text is NULL");
    PromptPart part;
    part.text.assign(text == nullptr ? "" : text, bytes);
    request->request.prompt_parts.push_back(std::move(part));
    return int{UPDRAFT_OK};
  });
}
int updraft_request_add_part_ids(updraft_request* request, const int32_t* ids, uint64_t id_count) {
  return guarded([&] {
    if (request == nullptr || ids == nullptr)
      return refuse(UPDRAFT_ERR_INVALID, "request or ids is NULL");
    PromptPart part;
    part.kind = PromptPart::Kind::kIds;
    part.ids.assign(ids, ids + id_count);
    request->request.prompt_parts.push_back(std::move(part));
    return int{UPDRAFT_OK};
  });
}
int updraft_request_add_part_embeddings(updraft_request* request, int type, const void* rows,
                                        uint64_t row_count, uint64_t dim) {
  return guarded([&] { return add_embeddings(request, type, rows, row_count, dim, false); });
}
int updraft_request_add_placed_part_embeddings(updraft_request* request, int type, void* rows,
                                               uint64_t row_count, uint64_t dim) {
  return guarded([&] { return add_embeddings(request, type, rows, row_count, dim, true); });
}

int updraft_submit(updraft_session* session, const updraft_request* request, uint64_t* id) {
  return guarded([&] {
    const Visit visit(session);
    if (!visit) return visit.status();
    if (request == nullptr || id == nullptr)
      return refuse(UPDRAFT_ERR_INVALID, "request or the place for its id is NULL");
    return hand_over(*session, *request, id);
  });
}

int updraft_cancel(updraft_session* session, uint64_t id) {
  return guarded([&] {
    // No Visit: the thread that waits in updraft_next() need not come out for it.
    if (session == nullptr) return refuse(UPDRAFT_ERR_INVALID, "the session is NULL");
    if (session->born_in_fork != current_fork())
      return refuse(UPDRAFT_ERR_FORKED,
                    "the session was opened before fork() and belongs to the parent process");
    session->client->cancel(static_cast<uint32_t>(id));
    return int{UPDRAFT_OK};
  });
}

int updraft_next(updraft_session* session, int timeout_ms, const updraft_event** event) {
  return guarded([&] {
    const Visit visit(session);
    if (!visit) return visit.status();
    if (event == nullptr) return refuse(UPDRAFT_ERR_INVALID, "the place for the event is NULL");
    auto next = session->client->next(timeout_ms);
    if (!next) return refuse(next);
    if (!*next) return 0;
    session->show(uint64_t{1} << 32 | (*next)->first, std::move((*next)->second));
    *event = &session->view;
    return 1;
  });
}

int updraft_fd(updraft_session* session) {
  return guarded([&] {
    const Visit visit(session);
    if (!visit) return visit.status();
    const Result<int> fd = session->client->event_fd();
    return fd ? *fd : refuse(fd);
  });
}

int updraft_poll(updraft_session* session, const updraft_event** event) {
  return updraft_next(session, 0, event);
}

}  // extern "C"
