"""Open-AutoGLM's client contract: its preflight, its parameters, its 1.2 MB body."""

import json
import unittest

from harness import SHARED_DATA, StackTest

PARAMETERS = {"max_tokens": 3000, "temperature": 0.0, "top_p": 0.85, "frequency_penalty": 0.2}


class OpenAutoGlm(StackTest):
    def test_the_preflight_gets_an_answer(self):
        answer = self.router.post("/v1/chat/completions", {"model": "updraft-demo", "max_tokens": 5, "temperature": 0,
                                                           "messages": [{"role": "user", "content": "Hi"}]},
                                  {"Authorization": "Bearer EMPTY", "X-Stainless-Lang": "python"})
        self.assertEqual(answer.status, 200)
        self.assertTrue(answer.json()["choices"])

    def test_a_step_without_an_image_is_streamed_in_delta_content(self):
        messages = [{"role": "system", "content": "You control a phone. Answer with one action."},
                    {"role": "user", "content": [{"type": "text", "text": 'Swipe down on the screen please\n\n{"current_app": "Inventory"}'}]}]
        stream = self.router.stream("/v1/chat/completions", {"model": "updraft-demo", "messages": messages, "stream": True, **PARAMETERS},
                                    {"Authorization": "Bearer EMPTY", "Accept": "application/json"})
        self.assertEqual(stream.status, 200)
        text = ""
        for data in stream:
            if data != "[DONE]":
                chunk = json.loads(data)
                if chunk["choices"]:
                    self.assertNotIn("reasoning_content", chunk["choices"][0]["delta"])
                    text += chunk["choices"][0]["delta"].get("content") or ""
        self.assertTrue(text.startswith(("do(", "finish(")), text)
        self.assertNotIn("<|im_end|>", text)

    def test_the_real_request_of_1_2_mb_is_taken_and_its_image_refused_by_name(self):
        path = SHARED_DATA / "autoglm/sample_messages.json"
        if not path.exists():
            self.skipTest(f"{path} is not there")
        messages = json.loads(path.read_text())
        body = json.dumps({"model": "updraft-demo", "messages": messages, "stream": True, **PARAMETERS})
        self.assertGreater(len(body), 1_200_000)
        answer = self.router.post("/v1/chat/completions", body)
        self.assertEqual(answer.status, 400, answer.body[:300])
        self.assertIn("image", answer.error()["message"])


if __name__ == "__main__":
    unittest.main()
