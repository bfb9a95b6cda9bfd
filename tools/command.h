// The subcommands of the one program. Each add_* declares its flags on the application and, when
// chosen, runs at parse time and leaves its exit status: 0 done, 1 it failed (one line on standard
// error said why), 2 wrong usage.
#pragma once

#include <string>

namespace CLI {
class App;
}

namespace updraft {

void add_up(CLI::App& app, int& exit_status);
void add_edge(CLI::App& app, int& exit_status);
void add_cloud(CLI::App& app, int& exit_status);
void add_router(CLI::App& app, int& exit_status);
void add_chat(CLI::App& app, int& exit_status);
void add_run(CLI::App& app, int& exit_status);
void add_bench(CLI::App& app, int& exit_status);
void add_bench_ipc(CLI::App& bench, int& exit_status);  // the word `ipc` after bench
void add_bench_router(CLI::App& bench, int& exit_status);  // the word `router` after bench
void add_bench_placement(CLI::App& bench, int& exit_status);
void add_make_model(CLI::App& app, int& exit_status);
void add_quantize(CLI::App& app, int& exit_status);
void add_quality(CLI::App& app, int& exit_status);
void add_keys(CLI::App& app, int& exit_status);
void add_explain(CLI::App& app, int& exit_status);
void add_sim(CLI::App& app, int& exit_status);

// "updraft: <message>" on standard error; returns 1, the exit status.
int complain(const std::string& message);

}  // namespace updraft
