"""The official OpenAI Python client against the endpoint."""

import unittest

from harness import StackTest, long_conversation

try:
    import openai
except ImportError:
    openai = None


@unittest.skipIf(openai is None, "the openai package is not installed")
class OpenAiClient(StackTest):
    def setUp(self):
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.router.port}/v1", api_key="EMPTY", max_retries=0)
        self.addCleanup(self.client.close)

    def chat(self, text="Go back.", **more):
        return self.client.chat.completions.create(model="updraft-demo", messages=[{"role": "user", "content": text}],
                                                   **{"temperature": 0, "max_tokens": 40, **more})

    def test_chat_not_streamed(self):
        answer = self.chat()
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertTrue(answer.choices[0].message.content)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)

    def test_chat_streamed_with_usage(self):
        whole = self.chat().choices[0].message.content
        text, usage, reasons = "", None, []
        for chunk in self.chat(stream=True, stream_options={"include_usage": True}):
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
                reasons.append(chunk.choices[0].finish_reason)
            usage = chunk.usage or usage
        self.assertEqual(text, whole)
        self.assertEqual(reasons[-1], "stop")
        self.assertGreater(usage.completion_tokens, 0)

    def test_text_completions_streamed_and_not(self):
        options = dict(model="updraft-demo", prompt="do(action=", max_tokens=10, temperature=0)
        whole = self.client.completions.create(**options).choices[0].text
        pieces = "".join(chunk.choices[0].text for chunk in self.client.completions.create(stream=True, **options) if chunk.choices)
        self.assertEqual(pieces, whole)

    def test_stop_max_tokens_seed_and_n(self):
        whole = self.chat().choices[0].message.content
        stop = whole[3:6]
        stopped = self.chat(stop=[stop]).choices[0]
        self.assertEqual(stopped.message.content, whole[: whole.index(stop)])
        self.assertEqual(stopped.finish_reason, "stop")
        short = self.chat(max_tokens=2)
        self.assertEqual((short.choices[0].finish_reason, short.usage.completion_tokens), ("length", 2))
        options = dict(temperature=1.5, seed=3, n=2)
        self.assertEqual([c.message.content for c in self.chat(**options).choices], [c.message.content for c in self.chat(**options).choices])

    def test_logprobs(self):
        answer = self.chat(logprobs=True, top_logprobs=3)
        content = answer.choices[0].logprobs.content
        self.assertEqual(len(content), answer.usage.completion_tokens)
        for position in content:
            self.assertLessEqual(position.logprob, 0)
            self.assertEqual(len(position.top_logprobs), 3)
            self.assertAlmostEqual(position.top_logprobs[0].logprob, position.logprob, places=4)  # greedy: the best one
        self.assertEqual("".join(p.token for p in content), answer.choices[0].message.content)

    def test_models(self):
        self.assertIn("updraft-demo", [model.id for model in self.client.models.list()])
        self.assertEqual(self.client.models.retrieve("updraft-demo").id, "updraft-demo")

    def test_errors_are_the_clients_own_classes(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.chat.completions.create(model="gpt-99", messages=[{"role": "user", "content": "x"}])
        self.assertEqual(caught.exception.code, "model_not_found")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(max_tokens=100000)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.BadRequestError):
            self.chat(temperature=-3)
        with self.assertRaises(openai.APIError):
            self.client.chat.completions.create(model="updraft-demo", messages=[])

    def test_a_long_request_through_the_client(self):
        raw = self.client.chat.completions.with_raw_response.create(
            model="updraft-demo", messages=long_conversation().messages(), temperature=0, max_tokens=60)
        self.assertEqual(raw.headers["x-updraft-tier"], "cloud")
        self.assertTrue(raw.parse().choices[0].message.content)

    def test_leaving_a_stream_early_is_fine(self):
        stream = self.chat("Hi", stream=True, max_tokens=400, temperature=1.0)
        next(iter(stream))
        stream.close()
        self.assertTrue(self.chat().choices[0].message.content)


if __name__ == "__main__":
    unittest.main()
