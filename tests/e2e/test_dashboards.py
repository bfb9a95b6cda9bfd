"""What the dashboard and the alert rules of configs/deploy ask for is what the daemons export."""

import json
import pathlib
import re
import shutil
import subprocess
import unittest

from harness import ROOT, StackTest, chat, wait_until

DEPLOY = ROOT / "configs/deploy"
NAME = re.compile(r"\b(?:vllm:|updraft_)\w+")


def plain(name):
    return re.sub(r"_(bucket|sum|count)$", "", name)


class Dashboards(StackTest):
    def exported(self):
        names = set()
        for daemon in self.stack.daemons.values():
            for line in daemon.get("/metrics").body.decode().splitlines():
                if not line.startswith("#"):
                    names.add(plain(re.split(r"[{ ]", line, maxsplit=1)[0]))
        return names

    def check(self, expressions):
        self.assertEqual(self.router.post("/v1/chat/completions", chat("Hi", max_tokens=8)).status, 200)
        stream = self.router.stream("/v1/chat/completions", chat("Hi", max_tokens=8, stream=True))
        self.assertIn("[DONE]", list(stream))
        stream.close()
        asked = {plain(name) for expression in expressions for name in NAME.findall(expression)}
        self.assertGreater(len(asked), 6)
        # A machine without a sensor tells no temperature.
        if not list(pathlib.Path("/sys/class/thermal").glob("*/temp")):
            asked.discard("updraft_machine_temperature_celsius")
        # The router's figures are refreshed a few times a second.
        try:
            wait_until(lambda: asked <= self.exported(), what="every metric")
        finally:
            self.assertEqual(asked - self.exported(), set())

    def test_every_metric_of_the_dashboard_is_exported(self):
        board = json.loads((DEPLOY / "grafana/updraft.json").read_text())
        self.check(target["expr"] for panel in board["panels"] for target in panel["targets"])

    def test_every_metric_of_the_alert_rules_is_exported(self):
        text = (DEPLOY / "prometheus/updraft.rules.yml").read_text()
        self.check(re.findall(r"^\s+expr: (.*)$", text, re.M))

    @unittest.skipUnless(shutil.which("promtool"), "promtool is not installed (Debian: prometheus)")
    def test_prometheus_takes_the_alert_rules_and_they_fire(self):
        rules = DEPLOY / "prometheus/updraft.rules.yml"
        for arguments in (("check", "rules", str(rules)), ("test", "rules", str(pathlib.Path(__file__).with_name("alert_cases.yml")))):
            done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_nodes_export_the_names_that_others_scrape(self):
        names = self.exported()
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:cache_config_info",
                     "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds"):
            self.assertIn(name, names)


if __name__ == "__main__":
    unittest.main()
