"""The rows of `mutants` for README and docs/: what is written there and is not so."""

ROWS = (
  (
    "words_link", "README.md",
    "| [rollouts](docs/rollouts.md): the engine", "| [rollouts](docs/rollout.md): the engine",
    "commands_test.py::test_links_lead_somewhere", "a link leads nowhere",
  ),
  (
    "words_anchor", "docs/operating.md",
    "## Sizing\n", "## Sizes\n",
    "commands_test.py::test_links_lead_somewhere", "a link leads to the top of a long page",
  ),
  (
    "words_field_of_a_command", "docs/data.md",
    "--config.data.path=sums.parquet", "--config.data.pth=sums.parquet",
    "commands_test.py::test_commands_are_read_by_their_programs", "a command of the page ends with code 2",
  ),
  (
    "words_config_that_cannot_be", "docs/data.md",
    "--config.batch.row_tokens=640", "--config.batch.row_tokens=64",
    "commands_test.py::test_commands_are_read_by_their_programs", "a command of the page is refused at its start",
  ),
  (
    "words_flag_of_a_command", "launch/curves.py",
    '"--out", required=True', '"--output", required=True',
    "commands_test.py::test_commands_are_read_by_their_programs", "a flag was renamed, and its page was not",
  ),
  (
    "words_unknown_command", "docs/rollouts.md",
    "    VLLM_SERVER_DEV_MODE=1 vllm serve DIR", "    vllm-server DIR",
    "commands_test.py::test_every_line_of_a_block_is_known", "a command that nobody has tried",
  ),
  (
    "words_make_target", "Makefile",
    "test-all: lint\n", "test-slow: lint\n",
    "commands_test.py::test_make_and_pytest_find_what_they_are_told", "make: *** No rule to make target",
  ),
  (
    "words_field_in_the_text", "docs/rollouts.md",
    "`dynamic_sampling.max_age` iterations", "`dynamic_sampling.age` iterations",
    "commands_test.py::test_files_and_fields_in_backticks_exist", "a field that is not there",
  ),
  (
    "words_file_in_the_text", "docs/code.md",
    "| `fipo_jax/types.py` |", "| `fipo_jax/records.py` |",
    "commands_test.py::test_files_and_fields_in_backticks_exist", "the map names a file that is not there",
  ),
  (
    "words_flag_in_the_text", "launch/plan.py",
    'DEFINE_bool("search"', 'DEFINE_bool("seek"',
    "commands_test.py::test_flags_in_backticks_exist", "a page praises a flag that is not there",
  ),
  (
    "words_bill", "docs/performance.md",
    "**2,143 s an iteration", "**2,103 s an iteration",
    "commands_test.py::test_the_bill_is_one_on_all_pages", "two pages, two bills",
  ),
  (
    "words_page_for_nobody", "docs/rollouts.md",
    "For whoever waits for sampling", "Sampling",
    "commands_test.py::test_each_page_says_who_needs_it_and_readme_is_short", "a page begins without saying for whom",
  ),
  (
    "words_code_in_readme", "fipo_jax/processes.py",
    "EXIT_LOST = 76", "EXIT_LOST = 77",
    "commands_test.py::test_a_strangers_three_questions_are_answered_in_readme", "README explains a code of yesterday",
  ),
  (
    "words_default", "fipo_jax/config.py",
    "c.checkpoint.keep = 2  #", "c.checkpoint.keep = 3  #",
    "configuration_test.py::test_the_page_is_the_config", "the reference tells another default",
  ),
  (
    "words_field_without_words", "docs/configuration.md",
    "| `checkpoint.keep` | `2` | the newest |", "| `checkpoint.keep` | `2` |  |",
    "configuration_test.py::test_every_field_has_its_row_and_its_words", "a field that nobody explains",
  ),
  (
    "words_comment_behind", "tests/configuration_test.py",
    'behind[1] if behind else ""', 'behind and ""',
    "configuration_test.py::test_comments_above_and_behind", "the reference says nothing",
  ),
  (
    "extending_no_example", "docs/extending.md",
    "```python\n# median.py\n", "```python\n",
    "extending_test.py::test_the_page_has_an_example_of_each", "an example that nobody runs",
  ),
  (
    "extending_reward", "docs/extending.md",
    "<= 0.01 * abs", "<= 0.1 * abs",
    "extending_test.py::test_the_reward_agrees_with_its_lines", "the example calls a wrong answer right",
  ),
  (
    "extending_empty_section", "fipo_jax/prompts.py",
    "  return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value", "  return value",
    "extending_test.py::test_the_source_is_read", "an experiment cannot empty what its source does not read",
  ),
  (
    "extending_objective", "docs/extending.md",
    "loss_RT = -advantages_RT *", "loss_RT = advantages_RT *",
    "extending_test.py::test_the_objective_is_its_equation", "the example unlearns",
  ),
  (
    "extending_estimator", "docs/extending.md",
    "np.median(rewards_PG,", "np.mean(rewards_PG,",
    "extending_test.py::test_the_estimator_is_its_equation", "the example is not what it says",
  ),
  (
    "extending_engine_refused", "fipo_jax/parts.py",
    "  }.get(r.engine, {})  # fmt: skip", "  }[r.engine]  # fmt: skip",
    "extending_test.py::test_the_engine_keeps_its_promises", "a row of one's own in ENGINES ends in a KeyError",
  ),
  (
    "extending_engine_forgets_the_prompt", "docs/extending.md",
    "[*seed, prompt.id, number]", "[*seed, number]",
    "extending_test.py::test_the_engine_keeps_its_promises", "all prompts get the same responses",
  ),
)
