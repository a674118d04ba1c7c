"""A small trained talking portrait: data, tokenizer, audio-driven diffusion transformer, sampler, measures.

portrait = load_portrait()
clip = held_out_clips(1)[0]
latents = sample(portrait.model, clip.audio[None], clip.reference_latent[None])
frames = portrait.autoencoder.decode(latents)[0]  # [16, 3, 64, 64] in [0, 1]
"""

from synccache.portrait.audio import audio_features as audio_features
from synccache.portrait.audio import feature_windows as feature_windows
from synccache.portrait.audio import null_audio as null_audio
from synccache.portrait.audio import read_wave as read_wave
from synccache.portrait.audio import write_wave as write_wave
from synccache.portrait.config import CONFIG as CONFIG
from synccache.portrait.config import PortraitConfig as PortraitConfig
from synccache.portrait.config import PortraitError as PortraitError
from synccache.portrait.held_out import HeldOutClip as HeldOutClip
from synccache.portrait.held_out import held_out_clips as held_out_clips
from synccache.portrait.load import Portrait as Portrait
from synccache.portrait.load import load_portrait as load_portrait
from synccache.portrait.measures import correlation as correlation
from synccache.portrait.measures import mouth_area_error as mouth_area_error
from synccache.portrait.measures import mouth_opening_trace as mouth_opening_trace
from synccache.portrait.measures import psnr as psnr
from synccache.portrait.measures import ssim as ssim
from synccache.portrait.model import PortraitTransformer as PortraitTransformer
from synccache.portrait.sampler import generate_clip as generate_clip
from synccache.portrait.sampler import noise_levels as noise_levels
from synccache.portrait.sampler import sample as sample
