"""Send one chat to an endpoint of hpc_dynamo, streamed, with OpenAI's own client.

Set OPENAI_BASE_URL and OPENAI_API_KEY first; run.sh does that. Needs `pip install openai`.
"""

import openai

client = openai.OpenAI()
model = client.models.list().data[0].id
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Why is the sky blue?"}],
    max_tokens=16,
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
