// OpenAI's response objects as text. Each token of a stream passes through here, so the objects are
// appended, not built.
#include "common/http/openai_response.h"

#include <cmath>
#include <set>
#include <utility>

#include "common/base/bytes.h"
#include "common/http/json_text.h"

namespace updraft {
namespace {

using std::string;
using std::string_view;

const char* reason_name(FinishReason reason) {
  return reason == FinishReason::kStop ? "stop" : "length";
}

void append_field(string& out, string_view name, string_view text) {
  append_json_string(out, name);
  out += ':';
  append_json_string(out, text);
}
void append_field(string& out, string_view name, int64_t number) {
  append_json_string(out, name);
  out += ':';
  append_json_number(out, number);
}

// {"token":"a","logprob":-0.1,"bytes":[97] -- left open for top_logprobs.
void append_token(string& out, const TokenLogprob& token) {
  out += "{\"token\":";
  append_json_string(out, token.text);
  out += ",\"logprob\":";
  append_json_number(out, token.logprob);
  out += ",\"bytes\":[";
  for (size_t i = 0; i < token.text.size(); ++i) {
    if (i > 0) out += ',';
    append_json_number(out, static_cast<int64_t>(static_cast<uint8_t>(token.text[i])));
  }
  out += ']';
}

string chat_logprobs(const std::vector<PositionLogprobs>& positions) {
  string out = "{\"content\":[";
  for (size_t i = 0; i < positions.size(); ++i) {
    if (i > 0) out += ',';
    append_token(out, positions[i].chosen);
    out += ",\"top_logprobs\":[";
    for (size_t k = 0; k < positions[i].top.size(); ++k) {
      if (k > 0) out += ',';
      append_token(out, positions[i].top[k]);
      out += '}';
    }
    out += "]}";
  }
  return out + "],\"refusal\":null}";
}

int64_t character_count(string_view text) {
  int64_t count = 0;
  for (const char c : text) count += (static_cast<uint8_t>(c) & 0xC0) != 0x80 ? 1 : 0;
  return count;
}

// The first token of an echoed prompt has no probability; the engine reports NaN.
void append_logprob_or_null(string& out, float logprob) {
  if (std::isnan(logprob)) {
    out += "null";
  } else {
    append_json_number(out, logprob);
  }
}

// {"a":-0.1,"b":-2.3}: the alternatives and the chosen token. Different tokens may read alike; the
// more probable stays.
string top_object(const PositionLogprobs& position) {
  string out = "{";
  std::set<string> names;
  const auto add = [&](const TokenLogprob& token) {
    string name = utf8_sanitized(token.text);
    if (!names.insert(name).second) return;
    if (out.size() > 1) out += ',';
    append_json_string(out, name);
    out += ':';
    append_json_number(out, token.logprob);
  };
  for (const TokenLogprob& token : position.top) add(token);
  add(position.chosen);
  return out + '}';
}

// Completions' older form: parallel arrays. `offset` is the character position of the first token
// in the choice's text and moves on.
string completion_logprobs(const std::vector<PositionLogprobs>& positions, int64_t& offset) {
  string tokens, logprobs, tops, offsets;
  for (const PositionLogprobs& position : positions) {
    const char* comma = tokens.empty() ? "" : ",";
    tokens += comma;
    append_json_string(tokens, position.chosen.text);
    logprobs += comma;
    append_logprob_or_null(logprobs, position.chosen.logprob);
    tops += comma;
    tops +=
        position.top.empty() || std::isnan(position.chosen.logprob) ? "null" : top_object(position);
    offsets += comma;
    append_json_number(offsets, offset);
    offset += character_count(position.chosen.text);
  }
  return "{\"tokens\":[" + tokens + "],\"token_logprobs\":[" + logprobs + "],\"top_logprobs\":[" +
         tops + "],\"text_offset\":[" + offsets + "]}";
}

string usage_json(const Usage& usage) {
  string out = "{";
  append_field(out, "prompt_tokens", usage.prompt_tokens);
  out += ',';
  append_field(out, "completion_tokens", usage.completion_tokens);
  out += ',';
  append_field(out, "total_tokens", int64_t{usage.prompt_tokens} + usage.completion_tokens);
  out += ",\"prompt_tokens_details\":{";
  append_field(out, "cached_tokens", usage.cached_tokens);
  return out + "}}";
}

string served_json(const ServedInfo& served) {
  string out = "{";
  append_field(out, "tier", string_view(tier_name(served.started.tier)));
  out += ',';
  append_field(out, "node", served.started.node_id);
  out += ',';
  append_field(out, "decision", served.started.decision);
  out += ',';
  append_field(out, "queued_ms", served.queued_ms);
  out += ",\"ttft_ms\":";
  if (served.ttft_ms < 0) {
    out += "null";
  } else {
    append_json_number(out, served.ttft_ms);
  }
  out += ',';
  append_field(out, "total_ms", served.total_ms);
  return out + '}';
}

// {"id":...,"object":...,"created":...,"model":... -- left open for choices.
string object_start(const AnswerHead& head, string_view object) {
  string out = "{";
  append_field(out, "id", head.id);
  out += ',';
  append_field(out, "object", object);
  out += ',';
  append_field(out, "created", head.created);
  out += ',';
  append_field(out, "model", head.model);
  out += ",\"system_fingerprint\":null";
  return out;
}

bool has_choice(const AnswerHead& head, const TokenChunk& chunk) {
  return chunk.choice >= 0 && chunk.choice < head.choice_count;
}

}  // namespace

AnswerHead::AnswerHead(const OpenAiCall& call, int64_t created_unix_s)
    : kind(call.request.kind),
      id((call.request.kind == Request::Kind::kChat ? "chatcmpl-" : "cmpl-") + call.request.id),
      model(call.request.model),
      created(created_unix_s),
      choice_count(total_choices(call.request)),
      logprobs(call.request.sampling.logprobs),
      include_usage(call.include_usage) {}

// --- streamed
// ----------------------------------------------------------------------------------------------------

StreamAnswer::StreamAnswer(AnswerHead head)
    : head_(std::move(head)),
      choice_ended_(static_cast<size_t>(head_.choice_count), false),
      choices_open_(head_.choice_count),
      text_offsets_(static_cast<size_t>(head_.choice_count), 0) {}

// `choices`: choice objects joined by commas. `tail`: further members, each with its comma in
// front.
string StreamAnswer::event(const string& choices, const string& tail) const {
  const bool chat = head_.kind == Request::Kind::kChat;
  string out = "data: " + object_start(head_, chat ? "chat.completion.chunk" : "text_completion");
  out += ",\"choices\":[" + choices + "]" + tail + "}\n\n";
  return out;
}

// `content`: members of a chat delta, or the text of a completion as JSON.
string StreamAnswer::choice_json(int32_t index, const string& content, const string& logprobs,
                                 const char* finish_reason) const {
  string out = "{";
  append_field(out, "index", index);
  out +=
      head_.kind == Request::Kind::kChat ? ",\"delta\":{" + content + "}" : ",\"text\":" + content;
  out += ",\"logprobs\":" + (logprobs.empty() ? "null" : logprobs) + ",\"finish_reason\":";
  out += finish_reason == nullptr ? "null" : "\"" + string(finish_reason) + "\"";
  return out + '}';
}

string StreamAnswer::roles() {
  announced_ = true;
  string out;
  if (head_.kind != Request::Kind::kChat) return out;
  for (int32_t i = 0; i < head_.choice_count; ++i) {
    out += event(choice_json(i, "\"role\":\"assistant\",\"content\":\"\"", "", nullptr),
                 head_.include_usage ? ",\"usage\":null" : "");
  }
  return out;
}

string StreamAnswer::started(const Started& started) {
  if (announced_) return "";  // the stream moved; its name stays
  if (!started.model.empty()) head_.model = started.model;
  return roles();
}

string StreamAnswer::chunk(const TokenChunk& chunk) {
  string out = announced_ ? "" : roles();
  if (!has_choice(head_, chunk) || choice_ended_[static_cast<size_t>(chunk.choice)]) return out;
  const size_t choice = static_cast<size_t>(chunk.choice);
  const bool chat = head_.kind == Request::Kind::kChat;
  const string usage = head_.include_usage ? ",\"usage\":null" : "";
  if (!chunk.text.empty() || (head_.logprobs && !chunk.logprobs.empty())) {
    string logprobs;
    if (head_.logprobs) {
      logprobs = chat ? chat_logprobs(chunk.logprobs)
                      : completion_logprobs(chunk.logprobs, text_offsets_[choice]);
    }
    const string text = json_string(chunk.text);
    out += event(choice_json(chunk.choice, chat ? "\"content\":" + text : text, logprobs, nullptr),
                 usage);
  }
  if (!chunk.finish) return out;
  choice_ended_[choice] = true;
  const string finish =
      choice_json(chunk.choice, chat ? "" : "\"\"", "", reason_name(*chunk.finish));
  if (--choices_open_ > 0) return out + event(finish, usage);
  last_finish_ = finish;
  return out;
}

string StreamAnswer::finished(const Finished& finished, const ServedInfo& served) {
  string out = announced_ ? "" : roles();
  const string updraft = ",\"updraft\":" + served_json(served);
  if (!last_finish_.empty()) {
    out += event(last_finish_, head_.include_usage ? ",\"usage\":null" : updraft);
  }
  if (head_.include_usage) out += event("", ",\"usage\":" + usage_json(finished.usage) + updraft);
  return out + "data: [DONE]\n\n";
}

// --- whole
// -------------------------------------------------------------------------------------------------------

WholeAnswer::WholeAnswer(AnswerHead head)
    : head_(std::move(head)), choices_(static_cast<size_t>(head_.choice_count)) {}

void WholeAnswer::started(const Started& started) {
  if (!started.model.empty()) head_.model = started.model;
}

void WholeAnswer::chunk(const TokenChunk& chunk) {
  if (!has_choice(head_, chunk)) return;
  Choice& choice = choices_[static_cast<size_t>(chunk.choice)];
  choice.text += chunk.text;
  if (head_.logprobs)
    choice.logprobs.insert(choice.logprobs.end(), chunk.logprobs.begin(), chunk.logprobs.end());
  if (chunk.finish) choice.finish_reason = reason_name(*chunk.finish);
}

string WholeAnswer::body(const Finished& finished, const ServedInfo& served) const {
  const bool chat = head_.kind == Request::Kind::kChat;
  string out = object_start(head_, chat ? "chat.completion" : "text_completion") + ",\"choices\":[";
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Choice& choice = choices_[i];
    out += i > 0 ? ",{" : "{";
    append_field(out, "index", static_cast<int64_t>(i));
    out += chat ? ",\"message\":{\"role\":\"assistant\",\"content\":" : ",\"text\":";
    append_json_string(out, choice.text);
    if (chat) out += ",\"refusal\":null}";
    int64_t text_offset = 0;
    out += ",\"logprobs\":";
    if (!head_.logprobs) {
      out += "null";
    } else {
      out +=
          chat ? chat_logprobs(choice.logprobs) : completion_logprobs(choice.logprobs, text_offset);
    }
    out += ",\"finish_reason\":\"" + choice.finish_reason + "\"}";
  }
  return out + "],\"usage\":" + usage_json(finished.usage) + ",\"updraft\":" + served_json(served) +
         "}";
}

// --- errors and models
// -------------------------------------------------------------------------------------------

string error_json(string_view message, string_view type, string_view param, string_view code) {
  string out = "{\"error\":{";
  append_field(out, "message", message);
  out += ',';
  append_field(out, "type", type);
  out += ",\"param\":" + (param.empty() ? "null" : json_string(param));
  return out + ",\"code\":" + (code.empty() ? "null" : json_string(code)) + "}}";
}

string error_json(const RequestError& error) {
  return error_json(error.message, openai_error_type(error.code), error.param,
                    openai_error_code(error.code));
}

string error_event(const RequestError& error) { return "data: " + error_json(error) + "\n\n"; }

string model_json(const ModelInfo& model) {
  string out = "{";
  append_field(out, "id", model.id);
  out += ",\"object\":\"model\",";
  append_field(out, "created", model.created);
  out += ",\"owned_by\":\"updraft\",";
  append_field(out, "max_model_len", model.context_tokens);
  out += ",\"updraft\":{";
  append_field(out, "quantization", model.quantization);
  out += ',';
  append_field(out, "digest", model.digest);
  out += string(",\"images\":") + (model.images ? "true" : "false") + "}}";
  return out;
}

string models_json(const std::vector<ModelInfo>& models) {
  string out = "{\"object\":\"list\",\"data\":[";
  for (size_t i = 0; i < models.size(); ++i) {
    if (i > 0) out += ',';
    out += model_json(models[i]);
  }
  return out + "]}";
}

}  // namespace updraft
