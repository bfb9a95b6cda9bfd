// Three passes: source to tags and text (whitespace control happens here), each tag to tokens,
// tokens to the shape.
#include "common/text/jinja_shape.h"

#include <algorithm>
#include <cctype>
#include <vector>

namespace updraft {
namespace {

constexpr size_t kSourceBytesMax = 1 << 20;
constexpr std::string_view kBlanks = " \t\r\n\v\f";

enum class NodeKind { kText, kExpression, kStatement };
struct Node {
  NodeKind kind;
  std::string content;
};

enum class TokenKind { kLiteral, kWord, kSign };
struct Token {
  TokenKind kind;
  std::string text;  // a literal's decoded value
};

std::string where(std::string_view source, size_t at) {
  return "line " +
         std::to_string(
             1 + std::count(source.begin(), source.begin() + static_cast<ptrdiff_t>(at), '\n'));
}

// End of the tag that begins at `at` ("{{", "{%" or "{#"): the place of its closing mark, strings
// skipped; npos: none.
size_t tag_end(std::string_view source, size_t at, std::string_view closing) {
  const bool comment = closing == "#}";
  char quote = '\0';
  for (size_t i = at + 2; i + 1 < source.size(); ++i) {
    const char c = source[i];
    if (quote != '\0') {
      if (c == '\\') {
        ++i;
      } else if (c == quote) {
        quote = '\0';
      }
    } else if (!comment && (c == '\'' || c == '"')) {
      quote = c;
    } else if (source.substr(i, 2) == closing) {
      return i;
    }
  }
  return std::string_view::npos;
}

void strip_back(std::string& text, std::string_view blanks) {
  const size_t last = text.find_last_not_of(blanks);
  text.erase(last == std::string::npos ? 0 : last + 1);
}

// lstrip_blocks: blanks between the line's beginning and a block tag go.
void strip_line_start(std::string& text, bool text_begins_line) {
  const size_t last = text.find_last_not_of(" \t");
  if (last == std::string::npos ? text_begins_line : text[last] == '\n') {
    text.erase(last == std::string::npos ? 0 : last + 1);
  }
}

Result<std::vector<Node>> read_nodes(std::string_view source) {
  if (source.ends_with('\n')) source.remove_suffix(1);
  std::vector<Node> nodes;
  bool strip_next = false, drop_newline = false;  // what the last tag asks of the text behind it
  for (size_t at = 0; at < source.size();) {
    size_t open = at;
    do {
      open = source.find('{', open);
      if (open == std::string_view::npos || open + 1 >= source.size()) open = source.size();
    } while (open < source.size() &&
             std::string_view("{%#").find(source[open + 1]) == std::string_view::npos && ++open);

    std::string text(source.substr(at, open - at));
    const bool begins_line =
        at == 0 || source[at - 1] == '\n' || (drop_newline && text.starts_with('\n'));
    if (strip_next) {
      text.erase(0, std::min(text.find_first_not_of(kBlanks), text.size()));
    } else if (drop_newline && text.starts_with('\n')) {
      text.erase(0, 1);
    }
    strip_next = drop_newline = false;
    if (open == source.size()) {
      nodes.push_back({NodeKind::kText, std::move(text)});
      break;
    }
    const char kind = source[open + 1];
    const std::string_view closing = kind == '{' ? "}}" : kind == '%' ? "%}" : "#}";
    const size_t close = tag_end(source, open, closing);
    if (close == std::string_view::npos)
      return fail("a tag or string does not end (" + where(source, open) + ")");
    std::string_view inside = source.substr(open + 2, close - open - 2);
    const bool strips_before = inside.starts_with('-');
    const bool keeps_before = inside.starts_with('+');
    if (strips_before || keeps_before) inside.remove_prefix(1);
    if (strips_before) {
      strip_back(text, kBlanks);
    } else if (kind != '{' && !keeps_before) {
      strip_line_start(text, begins_line);
    }
    strip_next = inside.ends_with('-');
    if (strip_next) inside.remove_suffix(1);
    drop_newline = kind != '{';
    if (!text.empty()) nodes.push_back({NodeKind::kText, std::move(text)});
    if (kind != '#') {
      nodes.push_back(
          {kind == '{' ? NodeKind::kExpression : NodeKind::kStatement, std::string(inside)});
    }
    at = close + 2;
  }
  return nodes;
}

std::string read_literal(std::string_view code, size_t& at) {
  const char quote = code[at++];
  std::string value;
  for (; at < code.size() && code[at] != quote; ++at) {
    if (code[at] != '\\' || at + 1 >= code.size()) {
      value.push_back(code[at]);
      continue;
    }
    const char c = code[++at];
    switch (c) {
      case 'n':
        value.push_back('\n');
        break;
      case 't':
        value.push_back('\t');
        break;
      case '\\':
      case '\'':
      case '"':
        value.push_back(c);
        break;
      default:
        value.append({'\\', c});
        break;
    }
  }
  ++at;
  return value;
}

bool is_word_character(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || (c & 0x80) != 0;
}

std::vector<Token> read_tokens(std::string_view code) {
  std::vector<Token> tokens;
  for (size_t at = 0; at < code.size();) {
    const char c = code[at];
    if (kBlanks.find(c) != std::string_view::npos) {
      ++at;
    } else if (c == '\'' || c == '"') {
      tokens.push_back({TokenKind::kLiteral, read_literal(code, at)});
    } else if (is_word_character(c)) {
      const size_t begin = at;
      while (at < code.size() && is_word_character(code[at])) ++at;
      tokens.push_back({TokenKind::kWord, std::string(code.substr(begin, at - begin))});
    } else {
      tokens.push_back({TokenKind::kSign, std::string(1, c == '~' ? '+' : c)});
      ++at;
    }
  }
  return tokens;
}

bool is_sign(const std::vector<Token>& tokens, size_t index, char sign) {
  return index < tokens.size() && tokens[index].kind == TokenKind::kSign &&
         tokens[index].text[0] == sign;
}

// x.name -> x['name'], unless it is called or follows a number.
std::vector<Token> index_attributes(const std::vector<Token>& tokens) {
  std::vector<Token> out;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (is_sign(tokens, i, '.') && i + 1 < tokens.size() &&
        tokens[i + 1].kind == TokenKind::kWord && !is_sign(tokens, i + 2, '(')) {
      out.push_back({TokenKind::kSign, "["});
      out.push_back({TokenKind::kLiteral, tokens[++i].text});
      out.push_back({TokenKind::kSign, "]"});
    } else {
      out.push_back(tokens[i]);
    }
  }
  return out;
}

// 'a'+'b' -> 'ab', unless something binds to 'b' more tightly than the plus does.
std::vector<Token> join_literals(const std::vector<Token>& tokens) {
  std::vector<Token> out;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const bool joins = out.size() >= 2 && tokens[i].kind == TokenKind::kLiteral &&
                       is_sign(out, out.size() - 1, '+') &&
                       out[out.size() - 2].kind == TokenKind::kLiteral &&
                       !is_sign(tokens, i + 1, '|') && !is_sign(tokens, i + 1, '.') &&
                       !is_sign(tokens, i + 1, '[') && !is_sign(tokens, i + 1, '*');
    // `x * 'a' + 'b'` and `x | f + 'b'` keep their order: the left literal must begin its operand.
    const bool left_free = !joins || out.size() == 2 || is_sign(out, out.size() - 3, '+') ||
                           is_sign(out, out.size() - 3, '(') || is_sign(out, out.size() - 3, '=');
    if (joins && left_free) {
      out.pop_back();
      out.back().text += tokens[i].text;
    } else {
      out.push_back(tokens[i]);
    }
  }
  return out;
}

// Conditions and comparisons inside an output keep parentheses when it is joined to its neighbours.
bool needs_parentheses(const std::vector<Token>& tokens) {
  return std::any_of(tokens.begin(), tokens.end(), [](const Token& token) {
    return token.kind == TokenKind::kWord &&
           (token.text == "if" || token.text == "or" || token.text == "and" ||
            token.text == "not" || token.text == "is" || token.text == "in");
  });
}

void append_tokens(const std::vector<Token>& tokens, std::string& shape) {
  bool after_word = false;
  for (const Token& token : tokens) {
    if (token.kind == TokenKind::kLiteral) {
      if (after_word) shape.push_back(' ');
      shape.push_back('\'');
      for (const char c : token.text) {
        switch (c) {
          case '\n':
            shape += "\\n";
            break;
          case '\t':
            shape += "\\t";
            break;
          case '\\':
            shape += "\\\\";
            break;
          case '\'':
            shape += "\\'";
            break;
          default:
            shape.push_back(c);
        }
      }
      shape.push_back('\'');
    } else {
      if (after_word && token.kind == TokenKind::kWord) shape.push_back(' ');
      shape += token.text;
    }
    after_word = token.kind == TokenKind::kWord;
  }
}

}  // namespace

Result<std::string> jinja_shape(std::string_view source) {
  if (source.size() > kSourceBytesMax) return fail("longer than 1 MiB");
  Result<std::vector<Node>> nodes = read_nodes(source);
  if (!nodes) return nodes.error();
  std::string shape;
  std::vector<Token> output;  // of the outputs since the last statement
  const auto flush = [&] {
    if (output.empty()) return;
    shape += "{{";
    append_tokens(join_literals(output), shape);
    shape += "}}";
    output.clear();
  };
  for (const Node& node : *nodes) {
    if (node.kind == NodeKind::kStatement) {
      const std::vector<Token> tokens = join_literals(index_attributes(read_tokens(node.content)));
      if (tokens.size() == 1 &&
          (tokens[0].text == "generation" || tokens[0].text == "endgeneration"))
        continue;
      flush();
      shape += "{%";
      append_tokens(tokens, shape);
      shape += "%}";
      continue;
    }
    if (node.content.empty()) continue;
    if (!output.empty()) output.push_back({TokenKind::kSign, "+"});
    if (node.kind == NodeKind::kText) {
      output.push_back({TokenKind::kLiteral, node.content});
      continue;
    }
    const std::vector<Token> tokens = index_attributes(read_tokens(node.content));
    const bool wrap = needs_parentheses(tokens);
    if (wrap) output.push_back({TokenKind::kSign, "("});
    output.insert(output.end(), tokens.begin(), tokens.end());
    if (wrap) output.push_back({TokenKind::kSign, ")"});
  }
  flush();
  return shape;
}

}  // namespace updraft
