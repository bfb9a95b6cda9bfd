// updraft: one program, one file per subcommand.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "tools/command.h"

namespace updraft {

int complain(const std::string& message) {
  std::fprintf(stderr, "updraft: %s\n", message.c_str());
  return 1;
}

namespace {

// A newcomer who types the bare name gets the help; a wrong flag is named with its command.
int explain_usage(const CLI::App& app, const CLI::ParseError& error, int argc, char** argv) {
  if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
  if (argc < 2) {
    std::fprintf(stderr, "%s", app.help().c_str());
    return 2;
  }
  std::string command = "updraft";
  const CLI::App* at = &app;
  while (!at->get_subcommands().empty()) {
    at = at->get_subcommands().front();
    command += " " + at->get_name();
  }
  std::string what = error.what();
  const std::string last = argv[argc - 1];
  if (at == &app && argv[1][0] != '-') {
    what = "there is no command '" + std::string(argv[1]) + "'";
  } else if (at->get_require_subcommand_min() > 0 && last[0] != '-' && last != at->get_name()) {
    what = "there is no command '" + last + "'";
  }
  std::fprintf(stderr, "%s: %s\nRun '%s --help' for what there is.\n", command.c_str(),
               what.c_str(), command.c_str());
  return 2;
}

}  // namespace
}  // namespace updraft

int main(int argc, char** argv) {
  CLI::App app(
      "Updraft: language-model inference from the edge gateway to the GPU pool, behind one "
      "OpenAI-compatible endpoint.\n"
      "\n"
      "Start here:\n"
      "  updraft up                                   router + edge + cloud on this machine, with "
      "the demo model\n"
      "  updraft chat                                 talk to it in the terminal\n"
      "  updraft run -m model.gguf -p \"Hello\"         run one model file, no daemon");
  app.set_version_flag("--version", "updraft " UPDRAFT_VERSION);
  app.require_subcommand(1);
  app.option_defaults()->always_capture_default();
  int exit_status = 0;
  updraft::add_up(app, exit_status);
  updraft::add_edge(app, exit_status);
  updraft::add_cloud(app, exit_status);
  updraft::add_router(app, exit_status);
  updraft::add_chat(app, exit_status);
  updraft::add_run(app, exit_status);
  updraft::add_bench(app, exit_status);
  updraft::add_make_model(app, exit_status);
  updraft::add_quantize(app, exit_status);
  updraft::add_quality(app, exit_status);
  updraft::add_keys(app, exit_status);
  updraft::add_explain(app, exit_status);
  updraft::add_sim(app, exit_status);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return updraft::explain_usage(app, error, argc, argv);
  }
  return exit_status;
}
