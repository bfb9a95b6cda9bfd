// The shape of Jinja sources: what may differ between equal templates, and what must not.
#include "common/text/jinja_shape.h"

#include <doctest/doctest.h>

using updraft::jinja_shape;

namespace {
std::string shape(std::string_view source) {
  auto made = jinja_shape(source);
  REQUIRE_MESSAGE(made.ok(), made.message());
  return *made;
}
}  // namespace

TEST_CASE("quotes, blanks, attributes and split literals do not matter") {
  const std::string expected =
      R"({%if a['b']=='x'%}{{'\'one\' two\n'+c['d']|trim+'end'}}{%endif%})";
  CHECK(
      shape(R"({% if a.b == "x" %}{{ "'one' two" }}{{ '\n' + c.d | trim + "end" }}{% endif %})") ==
      expected);
  CHECK(shape("{%- if a['b']=='x' -%}\n   {{- '\\'one\\' two\\n' ~ c[\"d\"]|trim -}}\n  end\n  {%- "
              "endif %}") == expected);
  CHECK(shape(expected) == expected);
}

TEST_CASE("whitespace control follows Jinja's rules with trim_blocks and lstrip_blocks") {
  CHECK(shape("a\n  {% if x %}\n  b\n  {% endif %}\nc\n") ==
        R"({{'a\n'}}{%if x%}{{'  b\n'}}{%endif%}{{'c'}})");
  CHECK(shape("a  {% if x %}b{% endif %}") == "{{'a  '}}{%if x%}{{'b'}}{%endif%}");
  CHECK(shape("  {%+ if x %}b{% endif %}") == "{{'  '}}{%if x%}{{'b'}}{%endif%}");
  CHECK(shape("a\n  {{ x }}\n  {#- note -#}\n b") == "{{'a\\n  '+x+'b'}}");
  CHECK(shape("{# note #}\n  {{ x }}") == "{{'  '+x}}");
  CHECK(shape("{% if x %}\n  {% if y %}z{% endif %}{% endif %}") ==
        "{%if x%}{%if y%}{{'z'}}{%endif%}{%endif%}");
}

TEST_CASE("what binds more tightly than plus is not joined") {
  CHECK(shape("{{ 'a' + 'b' | upper }}") == "{{'a'+'b'|upper}}");
  CHECK(shape("{{ x | join('a') + 'b' }}") == "{{x|join('a')+'b'}}");
  CHECK(shape("{{ 'ab'[0] }}{{ 'c' }}") == "{{'ab'[0]+'c'}}");
  CHECK(shape("{{ x if y else z }}{{ 'c' }}") == "{{(x if y else z)+'c'}}");
  CHECK(shape("{{ x.strip() }}") == "{{x.strip()}}");
}

TEST_CASE("tags inside strings and lone braces are text") {
  CHECK(shape("{{ '%} }} {{' }}") == "{{'%} }} {{'}}");
  CHECK(shape("a { b {") == "{{'a { b {'}}");
  CHECK(shape("{% generation %}x{% endgeneration %}y") == "{{'xy'}}");
  CHECK(shape("") == "");
}

TEST_CASE("what does not end is an error with its line") {
  CHECK(jinja_shape("a\nb {{ 'x }}").message() == "a tag or string does not end (line 2)");
  CHECK(jinja_shape("{% if").message() == "a tag or string does not end (line 1)");
}
