// Which family a template is of. Each rule works on the source's shape (jinja_shape.h) and answers
// with the family's renderer, variant included, or nothing. A rule names every statement that
// renders a conversation without tools, so that a template which would render otherwise is not
// taken for one that it resembles.
#include "common/text/chat_template.h"

#include <algorithm>
#include <initializer_list>
#include <optional>

#include "common/text/chat_families.h"
#include "common/text/jinja_shape.h"
#include "common/text/utf8.h"

namespace updraft {
namespace {

// --- shapes that several rules share ---

constexpr std::string_view kChatmlTurn =
    R"({{'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>\n'}})";
constexpr std::string_view kChatmlGeneration =
    R"({%if add_generation_prompt%}{{'<|im_start|>assistant\n'}}{%endif%})";
constexpr std::string_view kGenerationDefault =
    "{%if not add_generation_prompt is defined%}{%set add_generation_prompt=false%}{%endif%}";
constexpr std::string_view kToolAnswer =
    R"({{'\n<tool_response>\n'+message['content']+'\n</tool_response>'}})";

bool has_all(std::string_view shape, std::initializer_list<std::string_view> parts) {
  return std::all_of(parts.begin(), parts.end(), [shape](std::string_view part) {
    return shape.find(part) != std::string_view::npos;
  });
}

bool has_any(std::string_view shape, std::initializer_list<std::string_view> parts) {
  return std::any_of(parts.begin(), parts.end(), [shape](std::string_view part) {
    return shape.find(part) != std::string_view::npos;
  });
}

bool skip(std::string_view& shape, std::string_view part) {
  if (!shape.starts_with(part)) return false;
  shape.remove_prefix(part.size());
  return true;
}

// The value of the literal whose inside begins at `shape`, up to `closing`; nothing when that is
// not part of it.
std::optional<std::string> literal_until(std::string_view shape, std::string_view closing) {
  const size_t end = shape.find(closing);
  if (end == std::string_view::npos) return std::nullopt;
  std::string value;
  for (size_t i = 0; i < end; ++i) {
    if (shape[i] == '\'') return std::nullopt;  // the literal ends before
    if (shape[i] != '\\' || i + 1 == end) {
      value.push_back(shape[i]);
      continue;
    }
    const char c = shape[++i];
    value.push_back(c == 'n' ? '\n' : c == 't' ? '\t' : c);
  }
  return value;
}

// --- one rule per family; nullptr: not this one ---

// Plain ChatML, as a whole: one loop of turns and the generation prompt; BOS in front or a default
// system turn (then it is Qwen2's template, whatever the system text says).
SharedTemplate recognise_chatml(std::string_view shape) {
  ChatmlStyle style;
  skip(shape, kGenerationDefault);
  style.begins_with_bos = skip(shape, "{{bos_token}}");
  skip(shape, kGenerationDefault);
  if (!skip(shape, "{%for message in messages%}")) return nullptr;
  if (skip(shape,
           R"({%if loop['first']and messages[0]['role']!='system'%}{{'<|im_start|>system\n)")) {
    constexpr std::string_view kEnd = R"(<|im_end|>\n'}}{%endif%})";
    const auto system = literal_until(shape, kEnd);
    if (!system) return nullptr;
    style.name = "qwen2";
    style.default_system = *system;
    shape.remove_prefix(shape.find(kEnd) + kEnd.size());
  }
  if (!skip(shape, kChatmlTurn) || !skip(shape, "{%endfor%}") || shape != kChatmlGeneration)
    return nullptr;
  return make_chatml(std::move(style));
}

// The branch without tools: a given or a default system turn, user and plain assistant turns as
// ChatML, tool answers in a user turn, nothing after the plain generation prompt. No trace of
// thinking (that is another family).
SharedTemplate recognise_qwen25(std::string_view shape) {
  constexpr std::string_view kSystem =
      R"({%else%}{%if messages[0]['role']=='system'%}{{'<|im_start|>system\n'+messages[0]['content']+'<|im_end|>\n'}}{%else%}{{'<|im_start|>system\n)";
  constexpr std::string_view kSystemEnd =
      R"(<|im_end|>\n'}}{%endif%}{%endif%}{%for message in messages%})";
  constexpr std::string_view kPlainTurns =
      "{%if(message['role']=='user')or(message['role']=='system'and not loop['first'])or"
      "(message['role']=='assistant'and not message['tool_calls'])%}";
  if (!shape.starts_with("{%if tools%}") || !shape.ends_with(kChatmlGeneration)) return nullptr;
  if (!has_all(shape, {std::string(kPlainTurns).append(kChatmlTurn), kToolAnswer}) ||
      has_any(shape, {"think"})) {
    return nullptr;
  }
  const size_t system_at = shape.find(kSystem);
  if (system_at == std::string_view::npos) return nullptr;
  const auto system = literal_until(shape.substr(system_at + kSystem.size()), kSystemEnd);
  if (!system) return nullptr;
  return make_chatml({.name = "qwen2.5", .default_system = *system, .tool_answers_in_user = true});
}

// Qwen3 by its thinking: the search for the last question, the turns that keep or drop thoughts,
// and the empty thought of enable_thinking=false at the very end. (Thinking-only and non-thinking
// releases end otherwise and are not taken.)
SharedTemplate recognise_qwen3(std::string_view shape) {
  constexpr std::string_view kEnd =
      R"({%if add_generation_prompt%}{{'<|im_start|>assistant\n'}}{%if enable_thinking is defined and enable_thinking is false%}{{'<think>\n\n</think>\n\n'}}{%endif%}{%endif%})";
  if (!shape.starts_with("{%if tools%}") || !shape.ends_with(kEnd)) return nullptr;
  const bool known = has_all(
      shape,
      {R"({%else%}{%if messages[0]['role']=='system'%}{{'<|im_start|>system\n'+messages[0]['content']+'<|im_end|>\n'}}{%endif%}{%endif%})",
       "{%if ns['multi_step_tool']and message['role']=='user'and ",
       ".split('</think>')[-1].lstrip('\\n')%}",
       ".split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n')%}",
       "{%if loop['index0']>ns['last_query_index']%}{%if loop['last']or(not loop['last']and "
       "reasoning_content)%}",
       R"({{'<|im_start|>'+message['role']+'\n<think>\n'+reasoning_content.strip('\n')+'\n</think>\n\n'+content.lstrip('\n')}})",
       R"({%else%}{{'<|im_start|>'+message['role']+'\n'+content}}{%endif%}{%else%}{{'<|im_start|>'+message['role']+'\n'+content}}{%endif%})",
       kToolAnswer});
  return known ? make_qwen3() : nullptr;
}

// GLM-4: [gMASK]<sop> in front, markers with a line end, the bare assistant marker at the end. What
// later releases add (thinking switches, calls as XML, messages that are cut) is not rendered here
// and rules a template out.
SharedTemplate recognise_glm4(std::string_view shape) {
  constexpr std::string_view kNewlineEnd =
      R"({%if add_generation_prompt%}{{'<|assistant|>\n'}}{%endif%})";
  constexpr std::string_view kBareEnd = "{%if add_generation_prompt%}{{'<|assistant|>'}}{%endif%}";
  if (!shape.starts_with("{{'[gMASK]<sop>'}}")) return nullptr;
  const bool newline = shape.ends_with(kNewlineEnd);
  if (!newline && !shape.ends_with(kBareEnd)) return nullptr;
  if (has_any(shape, {"think", "reasoning", "<tool_call>", ".split(", ".strip(", "|trim"}))
    return nullptr;
  Glm4Style style;
  style.newline_after_generation = newline;
  style.observations = has_any(shape, {"<|observation|>"});
  style.system_first = has_any(shape, {"{%for message in messages if message['role']!='system'%}"});
  // The first release writes one branch for all roles; the later ones a branch each.
  if (has_all(
          shape,
          {R"({%if item['content']%}{{'<|'+item['role']+'|>'+item['metadata']+'\n'+item['content']}}{%endif%})"})) {
    style.observations = style.skips_empty = true;
    return make_glm4(style);
  }
  if (!has_all(shape, {R"('<|system|>\n'+)", R"({{'<|user|>\n')", R"({{'<|assistant|>\n'+)"}))
    return nullptr;
  return make_glm4(style);
}

SharedTemplate recognise_llama3(std::string_view shape) {
  constexpr std::string_view kTurns =
      R"({%set loop_messages=messages%}{%for message in loop_messages%}{%set content='<|start_header_id|>'+message['role']+'<|end_header_id|>\n\n'+message['content']|trim+'<|eot_id|>'%}{%if loop['index0']==0%}{%set content=bos_token+content%}{%endif%}{{content}}{%endfor%})";
  constexpr std::string_view kAlways = R"({{'<|start_header_id|>assistant<|end_header_id|>\n\n'}})";
  constexpr std::string_view kGeneration =
      R"({%if add_generation_prompt%}{{'<|start_header_id|>assistant<|end_header_id|>\n\n'}}{%endif%})";
  // 3.0 as a whole. Its first release opens the answer always, whatever the caller says; here the
  // caller decides.
  std::string_view rest = shape;
  skip(rest, kGenerationDefault);
  if (skip(rest, kTurns) && (rest == kAlways || rest == kGeneration)) {
    return make_llama3({.dated_system = false, .date = ""});
  }
  // 3.1 and later: the dated system turn, plain turns, generation. The date is the template's own
  // default, also where it would ask for today's: prompts stay the same from day to day, and so do
  // their cached prefixes.
  constexpr std::string_view kDate = "{%set date_string='";
  const size_t date_at = shape.find(kDate);
  if (!shape.starts_with("{{bos_token}}") || !shape.ends_with(kGeneration) ||
      date_at == std::string_view::npos) {
    return nullptr;
  }
  const bool known = has_all(
      shape,
      {R"({{'<|start_header_id|>system<|end_header_id|>\n\n'}})",
       R"({{'Cutting Knowledge Date: December 2023\nToday Date: '+date_string+'\n\n'}})",
       "{%set system_message=messages[0]['content']|trim%}", "{{system_message+'<|eot_id|>'}}",
       R"({%if not(message['role']=='ipython'or message['role']=='tool'or 'tool_calls'in message)%}{{'<|start_header_id|>'+message['role']+'<|end_header_id|>\n\n'+message['content']|trim+'<|eot_id|>'}})"});
  const auto date = literal_until(shape.substr(date_at + kDate.size()), "'%}");
  if (!known || !date) return nullptr;
  return make_llama3({.dated_system = true, .date = *date});
}

// Both Llama 2 and Mistral are short and taken as a whole; the wording of their exceptions does not
// matter, so it goes.
std::string without_exception_texts(std::string_view shape) {
  constexpr std::string_view kRaise = "raise_exception('";
  std::string out;
  for (size_t at; (at = shape.find(kRaise)) != std::string_view::npos;) {
    out += shape.substr(0, at + kRaise.size());
    shape.remove_prefix(std::min(shape.find("')", at), shape.size()));
  }
  return out.append(shape);
}

SharedTemplate recognise_llama2(std::string_view shape) {
  constexpr std::string_view kWhole =
      "{%if messages[0]['role']=='system'%}{%set loop_messages=messages[1:]%}{%set "
      "system_message=messages[0]['content']%}"
      "{%else%}{%set loop_messages=messages%}{%set system_message=false%}{%endif%}{%for message in "
      "loop_messages%}"
      "{%if(message['role']=='user')!=(loop['index0']%2==0)%}{{raise_exception('')}}{%endif%}"
      R"({%if loop['index0']==0 and system_message!=false%}{%set content='<<SYS>>\n'+system_message+'\n<</SYS>>\n\n'+message['content']%})"
      "{%else%}{%set content=message['content']%}{%endif%}{%if message['role']=='user'%}"
      "{{bos_token+'[INST] '+content.strip()+' [/INST]'}}{%elif message['role']=='assistant'%}"
      "{{' '+content.strip()+' '+eos_token}}{%endif%}{%endfor%}";
  // The first release has one more branch, for system messages that its alternation or this one's
  // never lets through.
  constexpr std::string_view kSystemBranch =
      R"({%elif message['role']=='system'%}{{'<<SYS>>\n'+content.strip()+'\n<</SYS>>\n\n'}})";
  std::string whole = without_exception_texts(shape);
  if (const size_t at = whole.find(kSystemBranch); at != std::string::npos)
    whole.erase(at, kSystemBranch.size());
  return whole == kWhole ? make_llama2() : nullptr;
}

// Mistral's releases with tools: the plain turns of a conversation without any, and the system
// message in the last one.
SharedTemplate recognise_mistral_with_tools(std::string_view whole) {
  constexpr std::string_view kBegin =
      "{%if messages[0]['role']=='system'%}{%set system_message=messages[0]['content']%}"
      "{%set loop_messages=messages[1:]%}{%else%}{%set loop_messages=messages%}{%endif%}";
  if (!whole.starts_with(kBegin) ||
      !whole.ends_with("{%else%}{{raise_exception('')}}{%endif%}{%endfor%}") ||
      !has_all(
          whole,
          {"{%if(message['role']=='user')!=(ns['index']%2==0)%}{{raise_exception('')}}{%endif%}",
           "{{bos_token}}{%for message in loop_messages%}{%if message['role']=='user'%}{%if tools "
           "is not none and"})) {
    return nullptr;
  }
  MistralStyle style{.after_user = "[/INST]", .system_in_last_turn = true};
  if (has_all(
          whole,
          {R"({%if loop['last']and system_message is defined%}{{'[INST] '+system_message+'\n\n'+message['content']+'[/INST]'}})"
           "{%else%}{{'[INST] '+message['content']+'[/INST]'}}{%endif%}"})) {
    style.before_user = "[INST] ";
  } else if (
      has_all(
          whole,
          {R"({%if loop['last']and system_message is defined%}{{'[INST]'+system_message+'\n\n'+message['content']+'[/INST]'}})"
           "{%else%}{{'[INST]'+message['content']+'[/INST]'}}{%endif%}"})) {
    style.before_user = "[INST]";
  } else {
    return nullptr;
  }
  if (has_all(whole,
              {"{%elif message['role']=='assistant'%}{{' '+message['content']|trim+eos_token}}"})) {
    style.trims_answers = true;
  } else if (has_all(whole,
                     {"{%elif message['role']=='assistant'%}{{message['content']+eos_token}}"})) {
    style.before_answer = "";
  } else if (!has_all(
                 whole,
                 {"{%elif message['role']=='assistant'%}{{' '+message['content']+eos_token}}"})) {
    return nullptr;
  }
  return make_mistral(style);
}

SharedTemplate recognise_mistral(std::string_view shape) {
  constexpr std::string_view kAlternation =
      "{%if(message['role']=='user')!=(loop['index0']%2==0)%}{{raise_exception('')}}{%endif%}{%if "
      "message['role']=='user'%}";
  constexpr std::string_view kOtherRoles = "{%else%}{{raise_exception('')}}{%endif%}{%endfor%}";
  const std::string whole = without_exception_texts(shape);
  if (SharedTemplate found = recognise_mistral_with_tools(whole)) return found;
  std::string_view rest = whole;
  if (skip(rest, "{{bos_token}}{%for message in messages%}")) {
    if (!skip(rest, kAlternation) ||
        !skip(rest,
              "{{'[INST] '+message['content']+' [/INST]'}}{%elif "
              "message['role']=='assistant'%}{{message['content']+eos_token")) {
      return nullptr;
    }
    const bool space = skip(rest, "+' '");
    if (!skip(rest, "}}") || rest != kOtherRoles) return nullptr;
    return make_mistral({.before_user = "[INST] ",
                         .after_user = " [/INST]",
                         .before_answer = "",
                         .after_answer = space ? "</s> " : "</s>",
                         .system = false});
  }
  const bool newer =
      skip(rest,
           "{%if messages[0]['role']=='system'%}{%set system_message=messages[0]['content']%}{%set "
           "loop_messages=messages[1:]%}{%else%}{%set "
           "loop_messages=messages%}{%endif%}{{bos_token}}{%for message in "
           "loop_messages%}") &&
      skip(rest, kAlternation) &&
      skip(
          rest,
          R"({%if loop['first']and system_message is defined%}{{' [INST] '+system_message+'\n\n'+message['content']+' [/INST]'}})"
          "{%else%}{{' [INST] '+message['content']+' [/INST]'}}{%endif%}{%elif "
          "message['role']=='assistant'%}"
          "{{' '+message['content']+eos_token}}") &&
      rest == kOtherRoles;
  return newer ? make_mistral({}) : nullptr;
}

struct Family {
  const char* name;
  SharedTemplate (*make)();
};

// Alphabetical, as messages list them.
constexpr Family kFamilies[] = {
    {"chatml", [] { return make_chatml({}); }},
    {"glm4", [] { return make_glm4({}); }},
    {"llama2", [] { return make_llama2(); }},
    {"llama3", [] { return make_llama3({.dated_system = false, .date = ""}); }},
    {"llama3.1", [] { return make_llama3({}); }},
    {"mistral", [] { return make_mistral({}); }},
    {"qwen2",
     [] {
       return make_chatml({.name = "qwen2", .default_system = "You are a helpful assistant."});
     }},
    {"qwen2.5",
     [] {
       return make_chatml(
           {.name = "qwen2.5",
            .default_system =
                "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
            .tool_answers_in_user = true});
     }},
    {"qwen3", [] { return make_qwen3(); }},
};

// The first characters of a template on one line, for messages.
std::string beginning(std::string_view source) {
  constexpr size_t kShown = 60;
  std::string text;
  append_utf8_repaired(source.substr(0, kShown), text);
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, ' ');
  return "'" + text + (source.size() > kShown ? "...'" : "'");
}

}  // namespace

std::string known_chat_templates() {
  std::string names;
  for (const Family& family : kFamilies)
    names += (names.empty() ? "" : ", ") + std::string(family.name);
  return names;
}

Result<SharedTemplate> ChatTemplate::by_name(std::string_view name) {
  for (const Family& family : kFamilies) {
    if (name == family.name) return family.make();
  }
  return fail("chat_template '" + std::string(name) +
              "' is not a known family (known: " + known_chat_templates() + ")");
}

Result<SharedTemplate> ChatTemplate::recognise(std::string_view jinja_source) {
  const std::string advice =
      "set chat_template in the configuration to one of: " + known_chat_templates();
  if (jinja_source.empty()) return fail("the model file has no chat template; " + advice);
  const Result<std::string> shape = jinja_shape(jinja_source);
  const auto quoted = [&] { return "the model file's chat template " + beginning(jinja_source); };
  if (!shape) return fail(quoted() + " cannot be read: " + shape.message() + "; " + advice);
  for (const auto rule : {recognise_chatml, recognise_qwen25, recognise_qwen3, recognise_glm4,
                          recognise_llama3, recognise_llama2, recognise_mistral}) {
    if (SharedTemplate found = rule(*shape)) return found;
  }
  return fail(quoted() + " is of no known family; " + advice);
}

}  // namespace updraft
