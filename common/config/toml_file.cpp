// TOML files through toml++ 3.3; see the header for the contract.
#include "common/config/toml_file.h"

#include <toml++/toml.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <sstream>

namespace updraft {
namespace {

const char* type_name(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::string:
      return "a text";
    case toml::node_type::integer:
      return "an integer";
    case toml::node_type::floating_point:
      return "a fraction";
    case toml::node_type::boolean:
      return "a boolean";
    case toml::node_type::array:
      return "a list";
    case toml::node_type::table:
      return "a section";
    default:
      return "a date or time";
  }
}

// Every leaf as "section.key" with its line, in file order.
void collect_leaves(const toml::table& table, const std::string& prefix,
                    std::vector<std::pair<std::string, uint32_t>>& out) {
  for (const auto& [key, node] : table) {
    const std::string path = prefix + std::string(key.str());
    if (const toml::table* inner = node.as_table()) {
      collect_leaves(*inner, path + ".", out);
    } else {
      out.emplace_back(path, node.source().begin.line);
    }
  }
}

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

// "model.kv_type" as people read it in the file: "[model] kv_type".
std::string display_key(const std::string& key) {
  const size_t dot = key.rfind('.');
  return dot == std::string::npos ? key : "[" + key.substr(0, dot) + "] " + key.substr(dot + 1);
}

std::string environment_name(const std::string& key) {
  std::string name = "UPDRAFT_" + key;
  for (char& c : name)
    c = c == '.' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

// A value from outside the file, and what to call it in messages: "--set model.slots" or
// "UPDRAFT_MODEL_SLOTS".
struct Override {
  std::string value;
  std::string origin;
};

std::map<std::string, std::string>& command_line_overrides() {
  static std::map<std::string, std::string> values;
  return values;
}

std::optional<Override> find_override(const std::string& key) {
  const auto& flags = command_line_overrides();
  if (const auto it = flags.find(key); it != flags.end())
    return Override{it->second, "--set " + key};
  const std::string variable = environment_name(key);
  const char* value = std::getenv(variable.c_str());
  if (value == nullptr) return std::nullopt;
  return Override{value, variable};
}

std::optional<int64_t> parse_integer(const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::vector<std::string> split_commas(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  std::string item;
  while (std::getline(in, item, ',')) {
    if (!item.empty()) out.push_back(item);
  }
  return out;
}

}  // namespace

struct TomlFile::State {
  std::string name;
  std::string folder;
  toml::table table;
  std::set<std::string> asked;
  std::string problem;  // the first one

  void report(const std::string& where, const std::string& why) {
    if (problem.empty()) problem = where + ": " + why;
  }
  void report_at(const char* key, const toml::node& node, const std::string& why) {
    report(name + ":" + std::to_string(node.source().begin.line), display_key(key) + " " + why);
  }
  const toml::node* find(const char* key) {
    asked.insert(key);
    return table.at_path(key).node();
  }

  std::optional<int64_t> integer(const char* key, int64_t min, int64_t max) {
    const toml::node* node = find(key);
    const std::string range = std::to_string(min) + ".." + std::to_string(max);
    if (const auto given = find_override(key)) {
      const auto value = parse_integer(given->value);
      if (!value || *value < min || *value > max) {
        report(given->origin, "\"" + given->value + "\" is not an integer in " + range);
        return std::nullopt;
      }
      return value;
    }
    if (node == nullptr) return std::nullopt;
    const auto value = node->value_exact<int64_t>();
    if (!value) {
      report_at(key, *node,
                std::string("is ") + type_name(*node) + ", an integer in " + range + " is wanted");
      return std::nullopt;
    }
    if (*value < min || *value > max) {
      report_at(key, *node, "= " + std::to_string(*value) + " is not in " + range);
      return std::nullopt;
    }
    return value;
  }

  template <typename T>
  void get_integer(const char* key, T& out, int64_t min, int64_t max) {
    if (const auto value = integer(key, min, max)) out = static_cast<T>(*value);
  }
};

TomlFile::TomlFile(std::unique_ptr<State> state) : state_(std::move(state)) {}
TomlFile::~TomlFile() = default;
TomlFile::TomlFile(TomlFile&&) noexcept = default;
TomlFile& TomlFile::operator=(TomlFile&&) noexcept = default;
const std::string& TomlFile::name() const { return state_->name; }

Result<TomlFile> TomlFile::open(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::error_code ignored;
  if (!in || std::filesystem::is_directory(path, ignored)) {
    return fail(path + ": cannot be read as a configuration file");
  }
  std::ostringstream text;
  text << in.rdbuf();
  Result<TomlFile> file = parse(text.str(), path);
  if (file) {
    file->state_->folder = std::filesystem::absolute(path).parent_path().string();
  }
  return file;
}

Result<TomlFile> TomlFile::parse(const std::string& text, const std::string& name) {
  auto state = std::make_unique<State>();
  state->name = name;
  try {
    state->table = toml::parse(text, name);
  } catch (const toml::parse_error& error) {
    return fail(name + ":" + std::to_string(error.source().begin.line) + ":" +
                std::to_string(error.source().begin.column) + ": " +
                std::string(error.description()));
  }
  return TomlFile(std::move(state));
}

void TomlFile::get(const char* key, std::string& out) {
  const toml::node* node = state_->find(key);
  if (auto given = find_override(key)) {
    out = std::move(given->value);
    return;
  }
  if (node == nullptr) return;
  if (const auto value = node->value_exact<std::string>()) {
    out = *value;
  } else {
    state_->report_at(key, *node, std::string("is ") + type_name(*node) + ", a text is wanted");
  }
}

void TomlFile::get(const char* key, bool& out) {
  const toml::node* node = state_->find(key);
  if (const auto given = find_override(key)) {
    if (given->value == "true" || given->value == "1") {
      out = true;
    } else if (given->value == "false" || given->value == "0") {
      out = false;
    } else {
      state_->report(given->origin, "\"" + given->value + "\" is none of true, false, 1, 0");
    }
    return;
  }
  if (node == nullptr) return;
  if (const auto value = node->value_exact<bool>()) {
    out = *value;
  } else {
    state_->report_at(key, *node,
                      std::string("is ") + type_name(*node) + ", true or false is wanted");
  }
}

void TomlFile::get(const char* key, int32_t& out, int64_t min, int64_t max) {
  state_->get_integer(key, out, min, max);
}
void TomlFile::get(const char* key, int64_t& out, int64_t min, int64_t max) {
  state_->get_integer(key, out, min, max);
}
void TomlFile::get(const char* key, uint16_t& out, int64_t min, int64_t max) {
  state_->get_integer(key, out, min, max);
}
void TomlFile::get(const char* key, uint64_t& out, int64_t min, int64_t max) {
  state_->get_integer(key, out, min, max);
}

void TomlFile::get(const char* key, std::vector<std::string>& out) {
  const toml::node* node = state_->find(key);
  if (const auto given = find_override(key)) {
    out = split_commas(given->value);
    return;
  }
  if (node == nullptr) return;
  const toml::array* list = node->as_array();
  if (list == nullptr) {
    state_->report_at(key, *node,
                      std::string("is ") + type_name(*node) + ", a list of texts is wanted");
    return;
  }
  std::vector<std::string> values;
  for (const toml::node& item : *list) {
    const auto value = item.value_exact<std::string>();
    if (!value) {
      state_->report_at(key, item,
                        std::string("holds ") + type_name(item) + ", only texts are allowed");
      return;
    }
    values.push_back(*value);
  }
  out = std::move(values);
}

void TomlFile::get(const char* key, std::vector<int32_t>& out, int64_t min, int64_t max) {
  const toml::node* node = state_->find(key);
  const std::string range = std::to_string(min) + ".." + std::to_string(max);
  if (const auto given = find_override(key)) {
    std::vector<int32_t> values;
    for (const std::string& item : split_commas(given->value)) {
      const auto value = parse_integer(item);
      if (!value || *value < min || *value > max) {
        state_->report(given->origin, "\"" + item + "\" is not an integer in " + range);
        return;
      }
      values.push_back(static_cast<int32_t>(*value));
    }
    out = std::move(values);
    return;
  }
  if (node == nullptr) return;
  const toml::array* list = node->as_array();
  if (list == nullptr) {
    state_->report_at(key, *node,
                      std::string("is ") + type_name(*node) + ", a list of integers is wanted");
    return;
  }
  std::vector<int32_t> values;
  for (const toml::node& item : *list) {
    const auto value = item.value_exact<int64_t>();
    if (!value || *value < min || *value > max) {
      state_->report_at(key, item, "holds a value that is not an integer in " + range);
      return;
    }
    values.push_back(static_cast<int32_t>(*value));
  }
  out = std::move(values);
}

void TomlFile::get_choice(const char* key, std::string& out,
                          const std::vector<std::string>& choices) {
  std::string value = out;
  get(key, value);
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) {
    out = std::move(value);
    return;
  }
  std::string known;
  for (const std::string& choice : choices) known += (known.empty() ? "" : ", ") + choice;
  refuse(key, "= \"" + value + "\" is none of " + known);
}

void TomlFile::get_bytes(const char* key, uint64_t& out) {
  const toml::node* node = state_->find(key);
  std::string text;
  if (auto given = find_override(key)) {
    text = given->value;
  } else if (node == nullptr) {
    return;
  } else if (const auto number = node->value_exact<int64_t>()) {
    text = std::to_string(*number);
  } else if (const auto words = node->value_exact<std::string>()) {
    text = *words;
  } else {
    state_->report_at(
        key, *node,
        std::string("is ") + type_name(*node) + ", bytes such as \"512 MiB\" are wanted");
    return;
  }
  const Result<uint64_t> bytes = parse_bytes(text);
  if (bytes) {
    out = *bytes;
  } else {
    refuse(key, bytes.message());
  }
}

void TomlFile::get_path(const char* key, std::string& out) {
  std::string value;
  get(key, value);
  if (value.empty()) return;
  const std::filesystem::path path(value);
  const bool from_file = !find_override(key).has_value();
  out = from_file && path.is_relative() && !state_->folder.empty()
            ? (std::filesystem::path(state_->folder) / path).lexically_normal().string()
            : value;
}

bool TomlFile::has(const char* key) const {
  return state_->table.at_path(key).node() != nullptr || find_override(key).has_value();
}

void TomlFile::refuse(const char* key, const std::string& why) {
  if (const auto given = find_override(key)) {
    state_->report(given->origin, why);
  } else if (const toml::node* node = state_->table.at_path(key).node()) {
    state_->report_at(key, *node, why);
  } else {
    state_->report(state_->name, display_key(key) + " " + why);
  }
}

Result<void> TomlFile::finish() {
  if (!state_->problem.empty()) return fail(state_->problem);
  std::vector<std::pair<std::string, uint32_t>> leaves;
  collect_leaves(state_->table, "", leaves);
  for (const auto& [key, line] : leaves) {
    if (state_->asked.count(key) != 0) continue;
    std::string hint;
    size_t best = 4;
    for (const std::string& known : state_->asked) {
      const size_t distance = edit_distance(key, known);
      if (distance < best) {
        best = distance;
        hint = " (did you mean " + display_key(known) + "?)";
      }
    }
    return fail(state_->name + ":" + std::to_string(line) + ": " + display_key(key) +
                " is not a known key" + hint);
  }
  for (const auto& [key, value] : command_line_overrides()) {
    if (state_->asked.count(key) == 0)
      return fail("--set " + key + ": not a known key of " + state_->name);
  }
  return {};
}

Settings TomlFile::settings() const {
  Settings out;
  for (const std::string& key : state_->asked) {
    if (const auto given = find_override(key)) {
      out[key] = given->value;
    } else if (const toml::node* node = state_->table.at_path(key).node()) {
      std::ostringstream text;
      node->visit([&](const auto& value) { text << value; });
      out[key] = text.str();
    }
  }
  return out;
}

std::vector<std::string> changed_settings(const Settings& before, const Settings& after) {
  std::vector<std::string> names;
  for (const auto& [name, value] : before) {
    const auto now = after.find(name);
    if (now == after.end() || now->second != value) names.push_back(name);
  }
  for (const auto& [name, value] : after) {
    if (before.count(name) == 0) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

Result<void> add_config_override(const std::string& assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0) {
    return fail("--set \"" + assignment + "\" is not of the form section.key=value");
  }
  command_line_overrides()[assignment.substr(0, equals)] = assignment.substr(equals + 1);
  return {};
}

void clear_config_overrides() { command_line_overrides().clear(); }

Result<uint64_t> parse_bytes(const std::string& text) {
  static const std::pair<const char*, double> kUnits[] = {{"", 1.0},
                                                          {"B", 1.0},
                                                          {"KB", 1e3},
                                                          {"MB", 1e6},
                                                          {"GB", 1e9},
                                                          {"TB", 1e12},
                                                          {"KiB", 1024.0},
                                                          {"MiB", 1048576.0},
                                                          {"GiB", 1073741824.0},
                                                          {"TiB", 1099511627776.0}};
  size_t at = 0;
  while (at < text.size() &&
         (std::isdigit(static_cast<unsigned char>(text[at])) != 0 || text[at] == '.'))
    ++at;
  double number = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + at, number);
  size_t unit_at = at;
  while (unit_at < text.size() && text[unit_at] == ' ') ++unit_at;
  const std::string unit = text.substr(unit_at);
  if (at > 0 && error == std::errc() && end == text.data() + at) {
    for (const auto& [name, factor] : kUnits) {
      const double bytes = number * factor;
      if (unit == name && bytes < 9.2e18) return static_cast<uint64_t>(std::llround(bytes));
    }
  }
  return fail("\"" + text + "\" is not a number of bytes such as 1048576, \"512 MiB\" or \"2 GB\"");
}

}  // namespace updraft
