// The mapping from OpenAI's request bodies to Request. Reading order: read_openai_call at the end,
// then what it calls.
#include "common/http/openai_request.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <utility>

#include "common/base/bytes.h"
#include "common/http/data_url.h"
#include "common/http/field_reader.h"
#include "common/http/json_body.h"
#include "common/http/trace_context.h"

namespace updraft {
namespace {

namespace json = boost::json;
using std::string;
using std::string_view;

string_view view_of(const json::string& text) { return {text.data(), text.size()}; }
string at(const string& path, size_t index) { return path + "[" + std::to_string(index) + "]"; }

// --- what is refused by name
// -------------------------------------------------------------------------------------

// Fields that would change the answer and that nothing here implements. Silence would be a wrong
// answer.
constexpr std::array<string_view, 14> kRefusedWhenSet = {
    "functions",     "audio",          "web_search_options",
    "prediction",    "guided_json",    "guided_regex",
    "guided_choice", "guided_grammar", "structured_outputs",
    "grammar",       "json_schema",    "stop_token_ids",
    "suffix",        "prompt_embeds"};

bool is_empty(const json::value& value) {
  if (value.is_array()) return value.get_array().empty();
  if (value.is_object()) return value.get_object().empty();
  if (value.is_string()) return value.get_string().empty();
  return value.is_bool() && !value.get_bool();
}

void refuse_tools(const FieldReader& fields, Complaint& complaint) {
  if (const auto* tools = fields.find("tools"); tools != nullptr && !is_empty(*tools)) {
    complaint.unsupported("tools", "'tools' are not supported by this server");
  }
  for (const char* name : {"tool_choice", "function_call"}) {
    const auto* choice = fields.find(name);
    if (choice == nullptr || (choice->is_string() && choice->get_string() == "none")) continue;
    complaint.unsupported(
        name, "'" + string(name) + "' can only be \"none\" here, got " + shown(*choice));
  }
}

void refuse_unsupported(const FieldReader& fields, Complaint& complaint) {
  for (const string_view name : kRefusedWhenSet) {
    const auto* value = fields.find(name);
    if (value != nullptr && !is_empty(*value)) {
      complaint.unsupported(string(name), "'" + string(name) + "' is not supported by this server");
    }
  }
  refuse_tools(fields, complaint);
  if (const auto* format = fields.find("response_format")) {
    const auto* type = format->is_object() ? format->get_object().if_contains("type") : nullptr;
    if (type == nullptr || !type->is_string()) {
      complaint.invalid(
          "response_format",
          "'response_format' must be an object with a string 'type', got " + shown(*format));
    } else if (type->get_string() != "text") {
      complaint.unsupported(
          "response_format.type",
          "'response_format.type' can only be \"text\" here, got " + shown(*type));
    }
  }
  if (const auto* modalities = fields.find("modalities")) {
    const bool text_only = modalities->is_array() && modalities->get_array().size() == 1 &&
                           modalities->get_array()[0] == "text";
    if (!text_only) complaint.unsupported("modalities", "'modalities' can only be [\"text\"] here");
  }
  if (fields.integer("min_tokens").value_or(0) > 0) {
    complaint.unsupported("min_tokens", "'min_tokens' is not supported by this server");
  }
  for (const char* name : {"use_beam_search", "continue_final_message"}) {
    if (fields.boolean(name).value_or(false)) {
      complaint.unsupported(name, "'" + string(name) + "' is not supported by this server");
    }
  }
  if (!fields.boolean("add_generation_prompt").value_or(true)) {
    complaint.unsupported("add_generation_prompt", "'add_generation_prompt' can only be true here");
  }
}

// --- sampling
// ----------------------------------------------------------------------------------------------------

void read_stop(const FieldReader& fields, Sampling& sampling, Complaint& complaint) {
  const auto* stop = fields.find("stop");
  if (stop == nullptr) return;
  const auto add = [&](const json::value& value, const string& path) {
    if (!value.is_string() || value.get_string().empty() ||
        value.get_string().size() > kStopBytesMax) {
      complaint.invalid(path, "'" + path + "' must be a string of 1 to " +
                                  std::to_string(kStopBytesMax) + " bytes, got " + shown(value));
      return;
    }
    sampling.stop.emplace_back(view_of(value.get_string()));
  };
  if (!stop->is_array()) {
    add(*stop, "stop");
    return;
  }
  const json::array& list = stop->get_array();
  if (list.size() > kStopsMax) {
    complaint.invalid("stop", "'stop' can hold at most " + std::to_string(kStopsMax) +
                                  " strings, got " + std::to_string(list.size()));
    return;
  }
  for (size_t i = 0; i < list.size(); ++i) add(list[i], at("stop", i));
}

void read_logit_bias(const FieldReader& fields, Sampling& sampling, Complaint& complaint) {
  const auto* bias = fields.find("logit_bias");
  if (bias == nullptr) return;
  if (!bias->is_object()) {
    complaint.invalid(
        "logit_bias",
        "'logit_bias' must be an object from token ids to numbers, got " + shown(*bias));
    return;
  }
  const json::object& entries = bias->get_object();
  if (entries.size() > kLogitBiasMax) {
    complaint.invalid("logit_bias", "'logit_bias' can hold at most " +
                                        std::to_string(kLogitBiasMax) + " entries, got " +
                                        std::to_string(entries.size()));
    return;
  }
  const IntegerRange& ids = integer_range("logit_bias key");
  for (const auto& entry : entries) {
    const string_view key(entry.key().data(), entry.key().size());
    int64_t id = -1;
    const auto parsed = std::from_chars(key.data(), key.data() + key.size(), id);
    if (parsed.ec != std::errc() || parsed.ptr != key.data() + key.size() || id < ids.min ||
        id > ids.max) {
      complaint.invalid("logit_bias", "a key of 'logit_bias' must be a token id, got \"" +
                                          printable(key, 40) + "\"");
      return;
    }
    const auto value =
        checked_real(entry.value(), "logit_bias", "logit_bias." + string(key), complaint);
    if (!value) return;
    sampling.logit_bias.emplace_back(static_cast<int32_t>(id), static_cast<float>(*value));
  }
}

void read_max_tokens(const FieldReader& fields, Request& request, Complaint& complaint) {
  // OpenAI's default for text completions; a chat answer may use what the context leaves.
  constexpr int32_t kCompletionDefaultTokens = 16;
  const auto old_name = fields.integer("max_tokens");
  const auto new_name = fields.integer("max_completion_tokens");
  if (old_name && new_name && *old_name != *new_name) {
    complaint.invalid("max_completion_tokens",
                      "'max_tokens' and 'max_completion_tokens' contradict each other: " +
                          std::to_string(*old_name) + " and " + std::to_string(*new_name));
  }
  if (new_name || old_name) {
    request.sampling.max_tokens = static_cast<int32_t>(new_name ? *new_name : *old_name);
  } else if (request.kind == Request::Kind::kCompletion) {
    request.sampling.max_tokens = kCompletionDefaultTokens;
  }
}

void read_logprobs(const FieldReader& fields, Request& request, Complaint& complaint) {
  Sampling& sampling = request.sampling;
  if (request.kind == Request::Kind::kCompletion) {
    if (const auto count = fields.integer("logprobs")) {
      sampling.logprobs = true;
      sampling.top_logprobs = static_cast<int32_t>(*count);
    }
    return;
  }
  sampling.logprobs = fields.boolean("logprobs").value_or(false);
  if (const auto count = fields.integer("top_logprobs")) {
    if (*count > 0 && !sampling.logprobs) {
      complaint.invalid("top_logprobs", "'top_logprobs' needs 'logprobs' to be true");
    }
    sampling.top_logprobs = static_cast<int32_t>(*count);
  }
}

void read_sampling(const FieldReader& fields, Request& request, Complaint& complaint) {
  Sampling& sampling = request.sampling;
  const auto real = [&](string_view name, float& into) {
    if (const auto value = fields.real(name)) into = static_cast<float>(*value);
  };
  real("temperature", sampling.temperature);
  real("top_p", sampling.top_p);
  real("min_p", sampling.min_p);
  real("repetition_penalty", sampling.repetition_penalty);
  real("frequency_penalty", sampling.frequency_penalty);
  real("presence_penalty", sampling.presence_penalty);
  // A positive double may round to the float that the range excludes.
  if (sampling.top_p <= 0.0F || sampling.repetition_penalty <= 0.0F || sampling.min_p >= 1.0F) {
    complaint.invalid(
        "", "one of 'top_p', 'min_p' and 'repetition_penalty' is too close to its excluded limit");
  }
  if (const auto top_k = fields.integer("top_k")) {
    sampling.top_k = std::max<int32_t>(0, static_cast<int32_t>(*top_k));
  }
  if (const auto seed = fields.integer("seed")) sampling.seed = static_cast<uint64_t>(*seed);
  sampling.ignore_eos = fields.boolean("ignore_eos").value_or(false);
  read_max_tokens(fields, request, complaint);
  read_logprobs(fields, request, complaint);
  read_stop(fields, sampling, complaint);
  read_logit_bias(fields, sampling, complaint);
}

// --- chat messages
// -----------------------------------------------------------------------------------------------

void add_image(const json::object& part, const string& path, ChatMessage& message,
               size_t& image_count, Complaint& complaint) {
  // {"image_url": {"url": "..."}}, or the shorthand {"image_url": "..."} that several clients send.
  const auto* url = part.if_contains("image_url");
  const string url_path = path + ".image_url.url";
  if (url != nullptr && url->is_object()) url = url->get_object().if_contains("url");
  if (url == nullptr || !url->is_string()) {
    complaint.invalid(url_path, "'" + url_path + "' must be a string");
    return;
  }
  if (++image_count > kImagesMax) {
    complaint.invalid(url_path, "'" + url_path + "' is one image too many; at most " +
                                    std::to_string(kImagesMax) + " are accepted in one request");
    return;
  }
  auto image = decode_image_url(view_of(url->get_string()), kImageBytesMax);
  if (!image) {
    complaint.invalid(url_path, "'" + url_path + "': " + image.message());
    return;
  }
  ContentPart& out = message.parts.emplace_back();
  out.kind = ContentPart::Kind::kImage;
  out.mime = std::move(image->mime);
  out.bytes = std::move(image->bytes);
}

void add_part(const json::value& value, const string& path, ChatMessage& message,
              size_t& image_count, Complaint& complaint) {
  if (!value.is_object()) {
    complaint.invalid(path, "'" + path + "' must be an object, got " + shown(value));
    return;
  }
  const json::object& part = value.get_object();
  const auto* type = part.if_contains("type");
  if (type == nullptr || !type->is_string()) {
    complaint.invalid(path + ".type", "'" + path + ".type' must be a string");
    return;
  }
  const string_view type_name = view_of(type->get_string());
  if (type_name == "text") {
    const auto* text = part.if_contains("text");
    if (text == nullptr || !text->is_string()) {
      complaint.invalid(path + ".text", "'" + path + ".text' must be a string");
      return;
    }
    message.parts.emplace_back().text = view_of(text->get_string());
  } else if (type_name == "image_url") {
    add_image(part, path, message, image_count, complaint);
  } else {
    complaint.unsupported(
        path + ".type",
        "'" + path + ".type' can be \"text\" or \"image_url\", got " + shown(*type));
  }
}

void read_content(const json::value* content, const string& path, ChatMessage& message,
                  size_t& image_count, Complaint& complaint) {
  // An assistant's turn may have no text.
  if ((content == nullptr || content->is_null()) && message.role == "assistant") return;
  if (content != nullptr && content->is_string()) {
    message.parts.emplace_back().text = view_of(content->get_string());
    return;
  }
  if (content == nullptr || !content->is_array() || content->get_array().empty()) {
    complaint.invalid(path, "'" + path + "' must be a string or a list of parts that is not empty" +
                                (content == nullptr ? "" : ", got " + shown(*content)));
    return;
  }
  const json::array& parts = content->get_array();
  if (parts.size() > kPartsPerMessageMax) {
    complaint.invalid(path, "'" + path + "' can hold at most " +
                                std::to_string(kPartsPerMessageMax) + " parts, got " +
                                std::to_string(parts.size()));
    return;
  }
  for (size_t i = 0; i < parts.size() && !complaint.any(); ++i) {
    add_part(parts[i], at(path, i), message, image_count, complaint);
  }
}

void read_message(const json::value& value, const string& path, Request& request,
                  size_t& image_count, Complaint& complaint) {
  if (!value.is_object()) {
    complaint.invalid(path, "'" + path + "' must be an object, got " + shown(value));
    return;
  }
  const json::object& object = value.get_object();
  const auto* role = object.if_contains("role");
  constexpr std::array<string_view, 5> kRoles = {"system", "developer", "user", "assistant",
                                                 "tool"};
  if (role == nullptr || !role->is_string() ||
      std::find(kRoles.begin(), kRoles.end(), view_of(role->get_string())) == kRoles.end()) {
    complaint.invalid(path + ".role",
                      "'" + path + ".role' must be system, developer, user, assistant or tool" +
                          (role == nullptr ? "" : ", got " + shown(*role)));
    return;
  }
  for (const char* name : {"tool_calls", "function_call"}) {
    const auto* calls = object.if_contains(name);
    if (calls != nullptr && !calls->is_null() && !is_empty(*calls)) {
      complaint.unsupported(path + "." + name,
                            "'" + path + "." + name + "' is not supported by this server");
    }
  }
  ChatMessage& message = request.messages.emplace_back();
  message.role = view_of(role->get_string());
  read_content(object.if_contains("content"), path + ".content", message, image_count, complaint);
}

void read_messages(const FieldReader& fields, Request& request, Complaint& complaint) {
  const auto* messages = fields.find("messages");
  if (messages == nullptr || !messages->is_array() || messages->get_array().empty()) {
    complaint.invalid("messages", string("'messages' must be a list of at least one message") +
                                      (messages == nullptr ? "" : ", got " + shown(*messages)));
    return;
  }
  const json::array& list = messages->get_array();
  if (list.size() > kMessagesMax) {
    complaint.invalid("messages", "'messages' can hold at most " + std::to_string(kMessagesMax) +
                                      " messages, got " + std::to_string(list.size()));
    return;
  }
  size_t image_count = 0;
  for (size_t i = 0; i < list.size() && !complaint.any(); ++i) {
    read_message(list[i], at("messages", i), request, image_count, complaint);
  }
}

void read_template_arguments(const FieldReader& fields, Request& request, Complaint& complaint) {
  const auto* arguments = fields.find("chat_template_kwargs");
  if (arguments == nullptr) return;
  if (!arguments->is_object()) {
    complaint.invalid("chat_template_kwargs",
                      "'chat_template_kwargs' must be an object, got " + shown(*arguments));
    return;
  }
  const auto* thinking = arguments->get_object().if_contains("enable_thinking");
  if (thinking == nullptr || thinking->is_null()) return;
  if (!thinking->is_bool()) {
    complaint.invalid(
        "chat_template_kwargs.enable_thinking",
        "'chat_template_kwargs.enable_thinking' must be true or false, got " + shown(*thinking));
    return;
  }
  request.enable_thinking = thinking->get_bool();
}

// --- text completion prompts
// -------------------------------------------------------------------------------------

std::vector<int32_t> read_ids(const json::array& list, const string& path, Complaint& complaint) {
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (size_t i = 0; i < list.size() && !complaint.any(); ++i) {
    if (const auto id = checked_integer(list[i], "prompt", at(path, i), complaint)) {
      ids.push_back(static_cast<int32_t>(*id));
    }
  }
  return ids;
}

// A string, a list of strings, a list of ids, or a list of lists of ids; the first element says
// which.
void read_prompt(const FieldReader& fields, Request& request, Complaint& complaint) {
  const auto* prompt = fields.find("prompt");
  if (prompt != nullptr && prompt->is_string()) {
    request.prompts.emplace_back(view_of(prompt->get_string()));
    return;
  }
  if (prompt == nullptr || !prompt->is_array() || prompt->get_array().empty()) {
    complaint.invalid(
        "prompt",
        string("'prompt' must be a string, or a list of strings, of token ids or of lists of "
               "token ids that is not empty") +
            (prompt == nullptr ? "" : ", got " + shown(*prompt)));
    return;
  }
  const json::array& list = prompt->get_array();
  if (list[0].is_number()) {
    request.prompt_ids.push_back(read_ids(list, "prompt", complaint));
    return;
  }
  if (list.size() > kPromptsMax) {
    complaint.invalid("prompt", "'prompt' can hold at most " + std::to_string(kPromptsMax) +
                                    " prompts, got " + std::to_string(list.size()));
    return;
  }
  for (size_t i = 0; i < list.size() && !complaint.any(); ++i) {
    const string path = at("prompt", i);
    if (list[0].is_string() && list[i].is_string()) {
      request.prompts.emplace_back(view_of(list[i].get_string()));
    } else if (list[0].is_array() && list[i].is_array() && !list[i].get_array().empty()) {
      request.prompt_ids.push_back(read_ids(list[i].get_array(), path, complaint));
    } else {
      complaint.invalid(path, "'" + path + "' must be " +
                                  (list[0].is_string() ? "a string like the first prompt"
                                                       : "a list of token ids that is not empty") +
                                  ", got " + shown(list[i]));
    }
  }
}

// --- headers
// -----------------------------------------------------------------------------------------------------

void read_tier(string_view tier, Hints& hints, Complaint& complaint) {
  if (tier.empty() || tier == "any") return;
  if (tier == "edge") {
    hints.tier = Tier::kEdge;
  } else if (tier == "cloud") {
    hints.tier = Tier::kCloud;
  } else {
    complaint.invalid("x-updraft-tier", "'x-updraft-tier' must be any, edge or cloud, got '" +
                                            printable(tier, 40) + "'");
  }
}

void read_priority(string_view priority, Hints& hints, Complaint& complaint) {
  constexpr std::array<std::pair<string_view, Priority>, 4> kPriorities = {
      {{"system", Priority::kSystem},
       {"interactive", Priority::kInteractive},
       {"default", Priority::kDefault},
       {"bulk", Priority::kBulk}}};
  if (priority.empty()) return;
  for (const auto& [name, value] : kPriorities) {
    if (priority == name) {
      hints.priority = value;
      return;
    }
  }
  complaint.invalid("x-updraft-priority",
                    "'x-updraft-priority' must be system, interactive, default or bulk, got '" +
                        printable(priority, 40) + "'");
}

void read_deadline(string_view text, Hints& hints, Complaint& complaint) {
  if (text.empty()) return;
  const IntegerRange& range = integer_range("x-updraft-deadline-ms");
  int64_t value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || value < range.min ||
      value > range.max) {
    complaint.invalid("x-updraft-deadline-ms", "'x-updraft-deadline-ms' must be an integer from " +
                                                   std::to_string(range.min) + " to " +
                                                   std::to_string(range.max) + ", got '" +
                                                   printable(text, 40) + "'");
    return;
  }
  hints.deadline_ms = value;
}

void read_headers(const RequestHeaders& headers, Request& request, Complaint& complaint) {
  if (!headers.request_id.empty() && !is_request_id(headers.request_id)) {
    complaint.invalid("x-request-id",
                      "'x-request-id' must be 1 to 128 characters of [A-Za-z0-9._-], got '" +
                          printable(headers.request_id, 40) + "'");
  }
  read_tier(headers.tier, request.hints, complaint);
  if (headers.residency == "local-only") {
    request.hints.local_only = true;
  } else if (!headers.residency.empty() && headers.residency != "any") {
    complaint.invalid("x-updraft-residency",
                      "'x-updraft-residency' must be any or local-only, got '" +
                          printable(headers.residency, 40) + "'");
  }
  read_priority(headers.priority, request.hints, complaint);
  read_deadline(headers.deadline_ms, request.hints, complaint);
  if (!headers.session.empty()) {
    if (!is_request_id(headers.session)) {
      complaint.invalid("x-updraft-session",
                        "'x-updraft-session' must be 1 to 128 characters of [A-Za-z0-9._-], got '" +
                            printable(headers.session, 40) + "'");
    }
    request.hints.session = headers.session;
  }
  request.trace = read_traceparent(headers.traceparent).value_or("");
  if (!request.trace.empty()) request.trace_state = read_tracestate(headers.tracestate);
}

// --- the whole
// ---------------------------------------------------------------------------------------------------

void read_model(const FieldReader& fields, Request& request, Complaint& complaint) {
  const auto model = fields.text("model");
  if (complaint.any()) return;
  if (!model || model->empty()) {
    complaint.invalid("model",
                      "'model' is missing: name one that is served, GET /v1/models lists them");
    return;
  }
  if (model->size() > kModelNameBytesMax) {
    complaint.invalid("model", "'model' must be a string of 1 to " +
                                   std::to_string(kModelNameBytesMax) + " bytes, got " +
                                   std::to_string(model->size()));
    return;
  }
  request.model = *model;
}

void read_stream(const FieldReader& fields, OpenAiCall& call, Complaint& complaint) {
  call.stream = fields.boolean("stream").value_or(false);
  const auto* options = fields.find("stream_options");
  if (options == nullptr) return;
  if (!options->is_object()) {
    complaint.invalid("stream_options",
                      "'stream_options' must be an object, got " + shown(*options));
    return;
  }
  if (!call.stream) {
    complaint.invalid("stream_options", "'stream_options' needs 'stream' to be true");
    return;
  }
  const auto* usage = options->get_object().if_contains("include_usage");
  if (usage == nullptr || usage->is_null()) return;
  if (!usage->is_bool()) {
    complaint.invalid("stream_options.include_usage",
                      "'stream_options.include_usage' must be true or false, got " + shown(*usage));
    return;
  }
  call.include_usage = usage->get_bool();
}

void read_choices(const FieldReader& fields, Request& request, Complaint& complaint) {
  request.choice_count = static_cast<int32_t>(fields.integer("n").value_or(1));
  const auto best_of = fields.integer("best_of");
  if (best_of && *best_of != request.choice_count) {
    complaint.unsupported("best_of", "'best_of' can only equal 'n' here, got " +
                                         std::to_string(*best_of) + " and " +
                                         std::to_string(request.choice_count));
  }
}

}  // namespace

bool is_request_id(string_view id) {
  return !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' ||
           c == '_' || c == '-';
  });
}

std::variant<OpenAiCall, RequestError> read_openai_call(Request::Kind kind, string_view body,
                                                        const RequestHeaders& headers) {
  auto document = read_json(body);
  if (auto* error = std::get_if<RequestError>(&document)) return std::move(*error);
  const json::value& value = std::get<json::value>(document);
  Complaint complaint;
  if (!value.is_object()) {
    complaint.invalid("", "the body must be a JSON object, got " + shown(value));
    return complaint.error();
  }
  const FieldReader fields(value.get_object(), complaint);
  OpenAiCall call;
  call.request.id = new_request_id();
  call.request.kind = kind;
  read_headers(headers, call.request, complaint);
  read_model(fields, call.request, complaint);
  read_stream(fields, call, complaint);
  refuse_unsupported(fields, complaint);
  read_choices(fields, call.request, complaint);
  read_sampling(fields, call.request, complaint);
  if (complaint.any()) return complaint.error();  // before the images are decoded
  if (kind == Request::Kind::kChat) {
    read_messages(fields, call.request, complaint);
    read_template_arguments(fields, call.request, complaint);
  } else {
    read_prompt(fields, call.request, complaint);
    call.request.echo = fields.boolean("echo").value_or(false);
  }
  if (complaint.any()) return complaint.error();
  return call;
}

}  // namespace updraft
