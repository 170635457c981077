"""A project made for the hosted service runs as it is, its tool with a crawler for each call."""

import json
from pathlib import Path

import pytest
from builders import read_prompts
from chromium import chromium_executable
from loopback import serve_pub

from rnow.config.load import load_config
from rnow.records import RolloutId, ToolOutcome
from rnow.rollout.environment import worker_settings
from rnow.tools.base import ToolCall
from rnow.tools.pool import ToolPool

CONFIG = """\
project_id: 00000000-0000-4000-8000-000000000000
project_name: MedBrowse
dataset_id: d1
dataset_name: medbrowse
organization_id: o1
dataset_type: distill
data: {train_file: train.jsonl, batch_size: 2, group_size: 4}
model: {path: Qwen/Qwen3-8B, qlora_rank: 32, name: MedBrowse Agent}
teacher: {path: Qwen/Qwen3-32B, agentic: true}
algorithm: {loss_fn: ppo, adv_estimator: grpo, kl_penalty_coef: 0.1}
rollout:
  max_turns: 10
  max_tokens: 4096
  termination_policy: last_tool
  max_tool_response_chars: 8000
  tool_timeout: 120
trainer: {num_epochs: 3, learning_rate: 1e-4, save_step: 50}
"""
TOOLS = '''
import asyncio

import nest_asyncio
from crawl4ai import AsyncWebCrawler, BrowserConfig, CrawlerRunConfig

from rnow.core import tool

nest_asyncio.apply()


@tool
def browse(url: str) -> str:
    """Read a web page and return its content as markdown."""

    async def crawl() -> str:
        async with AsyncWebCrawler(config=BrowserConfig(headless=True)) as crawler:
            result = await crawler.arun(url=url, config=CrawlerRunConfig())
            if not result.success:
                return f"Error: {result.error_message}"
            return str(result.markdown)[:8000]

    return asyncio.run(crawl())
'''
PROMPT = {
    "messages": [
        {"role": "system", "content": "You find facts about trials, and may browse."},
        {"role": "user", "content": "Which company runs NCT1? Answer COMPANY: name"},
    ],
    "tools": ["browse"],
    "metadata": {"expected_answer": "Acme", "task_name": "company", "split": "train"},
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "config.yml").write_text(CONFIG)
    (tmp_path / "tools.py").write_text(TOOLS)
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(PROMPT)}\n" * 4)
    return tmp_path


def test_each_of_its_old_keys_is_warned_about_once(project: Path) -> None:
    loaded = load_config(project)
    assert [f"{warning.line}: {warning.message}" for warning in loaded.warnings] == [
        "1: project_id is ignored: runs are local",
        "3: dataset_id is ignored: the prompts are the file data.train_file",
        "4: dataset_name is ignored: the prompts are the file data.train_file",
        "5: organization_id is ignored: runs are local",
        "8: model.name is ignored: rnow run --name names a run and its model",
        "9: teacher.agentic is ignored: a run uses tools exactly when tools.py or rollout.mcp_url "
        "is there",
        "15: rollout.max_tool_response_chars is an old key, honoured in characters; "
        "rollout.max_tool_response counts tokens",
    ]


@pytest.mark.slow
async def test_its_tool_reads_pages_with_a_crawler_for_each_call(project: Path) -> None:
    chromium_executable()
    loaded = load_config(project)
    (project / "logs").mkdir()
    settings = worker_settings(
        loaded.config,
        project,
        tokenizer_file=None,
        ports={},
        log_file=project / "logs" / "tools.log",
    )
    async with serve_pub() as pub:
        pub.page("/study/NCT1", "<h1>NCT1</h1><p>Sponsor: Acme</p><script>0</script>" * 20)
        async with ToolPool(settings) as pool:
            prompts = read_prompts(
                project / loaded.config.data.train_file,
                tool_names=[schema.name for schema in pool.schemas],
            ).prompts
            answers = [
                await pool.call(
                    ToolCall(
                        name="browse",
                        arguments={"url": f"http://127.0.0.1:{pub.port}/study/NCT1?{number}"},
                        raw="",
                        error=None,
                    ),
                    rollout=RolloutId(step=0, prompt=0, rollout=number),
                    metadata=prompts[0].metadata,
                    allowed=prompts[0].tools,
                )
                for number in range(2)
            ]
    for answer in answers:
        assert answer.outcome is ToolOutcome.OK, answer.text
        assert answer.text.startswith("# NCT1\nSponsor: Acme\n")
    assert len(prompts) == 4
    asked = [request.path for request in pub.requests if "icon" not in request.path]
    assert asked == ["/study/NCT1"] * 2
