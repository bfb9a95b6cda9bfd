"""Keys and certificates change while the router runs: SIGHUP, and the administrators' listener."""

import hashlib
import http.client
import json
import shutil
import signal
import ssl
import unittest

from harness import ROOT, Stack, wait_until

GOLDEN = ROOT / "tests/common/http/golden"


class Reload(unittest.TestCase):
    def setUp(self):
        self.stack = Stack(())
        self.addCleanup(self.stack.close)
        self.keys = self.stack.folder / "keys/api-keys"

    def write_keys(self, **roles):
        lines = [f"sha256:{hashlib.sha256(key.encode()).hexdigest()} {key} role={role}" for key, role in roles.items()]
        self.keys.write_text("\n".join(lines) + "\n")
        self.keys.chmod(0o600)

    def status(self, key, path="/v1/models"):
        return self.router.get(path, {"Authorization": f"Bearer {key}"}).status

    def test_sighup_takes_over_keys_and_a_bad_file_changes_nothing(self):
        self.write_keys(old="developer")
        self.router = self.stack.start_router(http__api_keys_file=self.keys)
        self.assertEqual(self.status("old"), 200)
        self.write_keys(new="developer")
        self.router.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.status("new") == 200, what="the new key")
        self.assertEqual(self.status("old"), 401)
        self.keys.write_text("nonsense\n")
        self.router.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "not reloaded" in self.router.log_text(), what="the complaint")
        self.assertIn("api-keys:1", self.router.log_text())
        self.assertEqual(self.status("new"), 200)
        self.assertEqual(self.router.stop(), 0)

    def test_administrators_reload_and_the_audit_log_says_so(self):
        self.write_keys(boss="admin", dev="developer")
        audit = self.stack.folder / "audit.jsonl"
        self.router = self.stack.start_router(http__api_keys_file=self.keys, admin__port=0, admin__audit_file=audit)

        def ask(method, path, key):
            connection = http.client.HTTPConnection("127.0.0.1", int(self.router.facts["admin_port"]), timeout=30)
            connection.request(method, path, headers={"Authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            return answer.status, json.loads(body)

        self.assertEqual(ask("GET", "/admin/nodes", "boss"), (200, {"nodes": []}))
        self.assertEqual(ask("POST", "/admin/reload", "dev")[0], 403)
        self.assertEqual(ask("POST", "/admin/reload", "boss"), (200, {"reloaded": True, "needs_restart": []}))
        wait_until(lambda: len(audit.read_text().splitlines()) == 2, what="both lines")
        self.assertEqual([json.loads(line)["act"] for line in audit.read_text().splitlines()], ["denied", "reload"])

    def test_a_certificate_is_renewed_without_a_restart(self):
        self.write_keys(key="developer")
        files = {name: self.stack.folder / f"{name}.pem" for name in ("cert", "key")}

        def use(name):
            for what, path in files.items():
                shutil.copy(GOLDEN / f"tls_{name}_{what}.pem", path)
                path.chmod(0o600)

        def served(trusted):
            context = ssl.create_default_context(cafile=GOLDEN / f"tls_{trusted}_cert.pem")
            connection = http.client.HTTPSConnection("localhost", self.router.port, timeout=30, context=context)
            try:
                connection.request("GET", "/v1/models", headers={"Authorization": "Bearer key"})
                return connection.getresponse().status == 200
            except ssl.SSLCertVerificationError:
                return False
            finally:
                connection.close()

        use("first")
        self.router = self.stack.start_router(http__api_keys_file=self.keys, http__tls_cert=files["cert"], http__tls_key=files["key"],
                                              http__bind="0.0.0.0")
        self.assertTrue(served("first"))
        self.assertFalse(served("second"))
        url = f"https://localhost:{self.router.port}/v1"
        trusting = self.stack.run("chat", "--url", url, "--ca", files["cert"], "--api-key", "key", "-p", "Hi", check=False)
        self.assertIn("serves no model", trusting.stderr)  # there is no node
        doubting = self.stack.run("chat", "--url", url, "--api-key", "key", "-p", "Hi", check=False)
        self.assertEqual(doubting.returncode, 1)
        self.assertIn("certificate", doubting.stderr)
        use("second")
        self.router.process.send_signal(signal.SIGHUP)
        wait_until(lambda: served("second"), what="the second certificate")
        self.assertFalse(served("first"))


if __name__ == "__main__":
    unittest.main()
