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
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : 2;
  }
  return exit_status;
}
