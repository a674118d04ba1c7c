"""Avatar schedule: what is built into HunyuanVideo-Avatar, and its own switch does not turn off.

Probe:   none: 50 fixed letters, 30 computed and 20 skipped; the last holds for longer runs.
Error:   a skipped step takes the stream before the last block as it was on the last computed step; the
         last block and the head run on every step.
Source:  Tencent-Hunyuan/HunyuanVideo-Avatar, hymm_sp/modules/models_audio.py and diffusion/pipelines/
         pipeline_hunyuan_video_audio.py (no_cache_steps: 0-15, 20, 25, 30, 35, 40, 41-49). Its cache is
         kept by latent frame, because its windows shift; here the windows must not.
"""

from synccache.policies.dsl import Policy, Rule, Steps, blocks, values


def avatar_schedule() -> Policy:
    letters = "C" * 16 + "SSSSC" * 5 + "C" * 9
    return Policy("avatar_schedule", (Rule(values(blocks[:-1]), Steps(letters)),))
