// Jinja sources of the families' templates, laid out differently from the published ones (quotes,
// blanks, attribute or index access, split outputs): recognition must see through that. The long
// ones are shortened in the branches for tools.
#pragma once

#include <map>
#include <string>

namespace updraft::testing {

inline const std::map<std::string, std::string>& template_sources() {
  static const std::string chatml_tail = R"(
    {{- '<|im_start|>' + message.role + "\n" -}}
    {{ message.content + '<|im_end|>' }}
    {{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\n" }}{% endif %}
)";
  static const std::map<std::string, std::string> sources = {
      {"chatml", "{# plain #}{%- for message in messages %}" + chatml_tail},
      {"chatml-bos", "{{ bos_token }}{%- for message in messages %}" + chatml_tail},
      {"qwen2",
       "{%- for message in messages %}{% if loop['first'] and messages[0].role != \"system\" %}{{ "
       "\"<|im_start|>system\\n\" ~ 'You are a helpful assistant.' ~ '<|im_end|>\\n' }}{% endif "
       "%}" +
           chatml_tail},
      {"smollm2",
       "{%- for message in messages %}{% if loop.first and messages[0].role != 'system' %}{{ "
       "'<|im_start|>system\\nYou "
       "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}{% endif "
       "%}" +
           chatml_tail},
      {"glm-4-9b-chat", R"([gMASK]<sop>
{%- for item in messages %}
  {%- if item.tools is defined %}{{ '<|system|>\ntools' }}{% endif %}
  {%- if item.content %}
    {{- '<|' ~ item.role ~ '|>' ~ item.metadata ~ '\n' ~ item.content }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %})"},
      {"glm-4-0414", R"([gMASK]<sop>
{%- if tools %}{{ '<|system|>\ntools' }}{% endif %}
{%- for msg in messages %}{% if msg.role == 'system' %}{{ '<|system|>\n' + msg.content }}{% endif %}{% endfor %}
{%- for message in messages if message.role != 'system' %}
  {%- set role = message.role %}
  {%- set content = message.content %}
  {%- if role == 'user' %}{{ '<|user|>\n' + content }}
  {%- elif role == 'assistant' %}{{ '<|assistant|>\n' + content }}
  {%- elif role == 'observation' %}{{ '<|observation|>\n' + content }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %})"},
      {"llama2", R"({%- if messages[0].role == "system" -%}
  {%- set loop_messages = messages[1:] -%}
  {%- set system_message = messages[0].content -%}
{%- else -%}
  {%- set loop_messages = messages -%}
  {%- set system_message = false -%}
{%- endif -%}
{%- for message in loop_messages -%}
  {%- if (message.role == "user") != (loop.index0 % 2 == 0) -%}
    {{ raise_exception("turns must alternate") }}
  {%- endif -%}
  {%- if loop.index0 == 0 and system_message != false -%}
    {%- set content = "<<SYS>>\n" + system_message + "\n<</SYS>>" + "\n\n" + message.content -%}
  {%- else -%}
    {%- set content = message.content -%}
  {%- endif -%}
  {%- if message.role == "user" -%}
    {{- bos_token + "[INST] " }}{{ content.strip() }}{{ " [/INST]" -}}
  {%- elif message.role == "assistant" -%}
    {{- " " + content.strip() + " " + eos_token -}}
  {%- endif -%}
{%- endfor -%})"},
      {"llama3", R"({%- set loop_messages = messages -%}
{%- for message in loop_messages -%}
  {%- set content = "<|start_header_id|>" + message.role + "<|end_header_id|>\n" + "\n" + message.content|trim + "<|eot_id|>" -%}
  {%- if loop.index0 == 0 -%}{%- set content = bos_token + content -%}{%- endif -%}
  {{- content -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- "<|start_header_id|>assistant<|end_header_id|>\n\n" -}}
{%- endif -%})"},
      {"llama3.1", R"({{- bos_token }}
{%- if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}
{%- if messages[0].role == 'system' %}
  {%- set system_message = messages[0].content | trim %}
  {%- set messages = messages[1:] %}
{%- else %}{% set system_message = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>' + '\n\n' }}
{%- if tools is not none %}{{ 'Environment: ipython\n' }}{% endif %}
{{- 'Cutting Knowledge Date: December 2023\n' }}
{{- 'Today Date: ' + date_string }}
{{- '\n\n' }}
{%- if tools is not none %}{{ tools | tojson }}{% endif %}
{{- system_message + '<|eot_id|>' }}
{%- for message in messages %}
  {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
  {%- elif message.role == 'tool' or message.role == 'ipython' %}
    {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + message.content | tojson + '<|eot_id|>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %})"},
      {"mistral-v0.1", R"({{ bos_token -}}
{% for message in messages -%}
  {% if (message.role == "user") != (loop.index0 % 2 == 0) %}{{ raise_exception("order") }}{% endif -%}
  {% if message.role == "user" %}{{ "[INST] " + message.content + " [/INST]" -}}
  {% elif message.role == "assistant" %}{{ message.content + eos_token + " " -}}
  {% else %}{{ raise_exception("role") }}{% endif -%}
{% endfor %})"},
      {"mistral-v0.2", R"({{ bos_token -}}
{% for message in messages -%}
  {% if (message.role == "user") != (loop.index0 % 2 == 0) %}{{ raise_exception("order") }}{% endif -%}
  {% if message.role == "user" %}{{ "[INST] " + message.content + " [/INST]" -}}
  {% elif message.role == "assistant" %}{{ message.content + eos_token -}}
  {% else %}{{ raise_exception("role") }}{% endif -%}
{% endfor %})"},
      {"mistral-v0.3", R"({% if messages[0].role == 'system' -%}
  {% set system_message = messages[0].content -%}
  {% set loop_messages = messages[1:] -%}
{% else %}{% set loop_messages = messages %}{% endif -%}
{% set ns = namespace(index=0) -%}
{% for message in loop_messages -%}
  {% if message.role != 'tool' -%}
    {% if (message.role == 'user') != (ns.index % 2 == 0) %}{{ raise_exception('order') }}{% endif -%}
    {% set ns.index = ns.index + 1 -%}
  {% endif -%}
{% endfor -%}
{{ bos_token -}}
{% for message in loop_messages -%}
  {% if message.role == 'user' -%}
    {% if tools is not none and loop.last %}{{ '[AVAILABLE_TOOLS]' }}{% endif -%}
    {% if loop.last and system_message is defined -%}
      {{ '[INST] ' + system_message + '\n\n' + message.content }}{{ '[/INST]' -}}
    {% else %}{{ '[INST] ' + message.content + '[/INST]' }}{% endif -%}
  {% elif message.tool_calls is defined %}{{ '[TOOL_CALLS]' -}}
  {% elif message.role == 'assistant' %}{{ ' ' + message.content | trim + eos_token -}}
  {% else %}{{ raise_exception('role') }}{% endif -%}
{% endfor %})"},
      {"mistral-nemo", R"({% if messages[0].role == 'system' -%}
  {% set system_message = messages[0].content -%}
  {% set loop_messages = messages[1:] -%}
{% else %}{% set loop_messages = messages %}{% endif -%}
{% set ns = namespace(index=0) -%}
{% for message in loop_messages -%}
  {% if message.role != 'tool' -%}
    {% if (message.role == 'user') != (ns.index % 2 == 0) %}{{ raise_exception('order') }}{% endif -%}
    {% set ns.index = ns.index + 1 -%}
  {% endif -%}
{% endfor -%}
{{ bos_token -}}
{% for message in loop_messages -%}
  {% if message.role == 'user' -%}
    {% if tools is not none and loop.last %}{{ '[AVAILABLE_TOOLS]' }}{% endif -%}
    {% if loop.last and system_message is defined -%}
      {{ '[INST]' + system_message + '\n\n' + message.content }}{{ '[/INST]' -}}
    {% else %}{{ '[INST]' + message.content + '[/INST]' }}{% endif -%}
  {% elif message.tool_calls is defined %}{{ '[TOOL_CALLS]' -}}
  {% elif message.role == 'assistant' %}{{ message.content + eos_token -}}
  {% else %}{{ raise_exception('role') }}{% endif -%}
{% endfor %})"},
      {"mistral", R"({% if messages[0].role == "system" -%}
  {% set system_message = messages[0].content -%}
  {% set loop_messages = messages[1:] -%}
{% else %}{% set loop_messages = messages %}{% endif -%}
{{ bos_token -}}
{% for message in loop_messages -%}
  {% if (message.role == "user") != (loop.index0 % 2 == 0) %}{{ raise_exception("order") }}{% endif -%}
  {% if message.role == "user" -%}
    {% if loop.first and system_message is defined -%}
      {{ " [INST] " ~ system_message ~ "\n\n" ~ message.content ~ " [/INST]" -}}
    {% else %}{{ " [INST] " ~ message.content ~ " [/INST]" }}{% endif -%}
  {% elif message.role == "assistant" %}{{ " " + message.content + eos_token -}}
  {% else %}{{ raise_exception("role") }}{% endif -%}
{% endfor %})"},
  };
  return sources;
}

}  // namespace updraft::testing
