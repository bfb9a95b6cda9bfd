// The families' renderers with their variants. chat_template.cpp picks one; nobody else needs this
// header.
#pragma once

#include <memory>
#include <string>

#include "common/text/chat_template.h"

namespace updraft {

using SharedTemplate = std::shared_ptr<const ChatTemplate>;

// <|im_start|>role\n...<|im_end|>\n
struct ChatmlStyle {
  const char* name = "chatml";
  std::string
      default_system;  // put in front when the first message is no system message; empty: none
  bool begins_with_bos = false;
  bool tool_answers_in_user =
      false;  // qwen2.5: tool messages become <tool_response> blocks of a user turn
};
SharedTemplate make_chatml(ChatmlStyle style);
// ChatML whose assistant turns carry <think> blocks: kept after the last question, dropped before
// it.
SharedTemplate make_qwen3();

// [gMASK]<sop><|user|>\n...<|assistant|>\n
struct Glm4Style {
  bool newline_after_generation =
      true;                   // the generation prompt is <|assistant|>\n, not <|assistant|>
  bool observations = true;   // knows tool answers: <|observation|>\n
  bool system_first = false;  // all system messages come before the others
  bool skips_empty = false;   // a message without text is left out
};
SharedTemplate make_glm4(Glm4Style style);

// <|start_header_id|>role<|end_header_id|>\n\n...<|eot_id|>
struct Llama3Style {
  bool dated_system = true;  // 3.1 and later: a system turn with two dates, always there
  std::string date = "26 Jul 2024";
};
SharedTemplate make_llama3(Llama3Style style);

// <s>[INST] <<SYS>>\n...\n<</SYS>>\n\n... [/INST] ... </s>
SharedTemplate make_llama2();

// <s>[INST] ... [/INST]...</s>
struct MistralStyle {
  const char* before_user = " [INST] ";
  const char* after_user = " [/INST]";
  const char* before_answer = " ";
  const char* after_answer = "</s>";
  bool system = true;                // knows a first system message; it opens a user turn:
  bool system_in_last_turn = false;  // the last one (releases with tools), else the first
  bool trims_answers = false;
};
SharedTemplate make_mistral(MistralStyle style);

}  // namespace updraft
