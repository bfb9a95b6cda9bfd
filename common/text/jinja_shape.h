// The shape of a Jinja chat template: its source rewritten so that templates which render alike
// look alike. Read, never run: nothing is evaluated, so a hostile template can only fail to be
// recognised.
#pragma once

#include <string>
#include <string_view>

#include "common/base/result.h"

namespace updraft {

// Rewrites `source`, read with Hugging Face's settings (trim_blocks, lstrip_blocks, the last
// newline dropped):
//   text and {{ expressions }} that follow each other become one {{a+b+c}}, text as a literal,
//   neighbouring literals joined; literals are in single quotes with \n \t \\ \' escaped; x.name
//   becomes x['name'] unless it is called; ~ becomes +; blanks go except one between words;
//   comments and {% generation %} markers go.
// So `{{ "<|im_end|>" }}\n{% if a.b -%}` becomes `{{'<|im_end|>\n'}}{%if a['b']%}`.
// Error: a tag or a string that does not end, or a source above 1 MiB.
Result<std::string> jinja_shape(std::string_view source);

}  // namespace updraft
