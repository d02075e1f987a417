"""Every knob, with its default and what it means. Recipes start from here and state only their differences.

A value of None (a placeholder) means "the natural choice", which the comment names.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder


def get_config() -> ConfigDict:
    """The documented default: scikit-learn's handwritten digits, VP SDE."""
    config = ConfigDict()
    config.seed = 0  # of initialisation and training; sampling and likelihood have their own
    config.device = "auto"  # "auto": cuda where there is one, else cpu; or a torch device
    config.imports = ""  # Python files of yours, divided by commas, that add to the registries: docs/your_process.md
    config.threads = 0  # CPU threads of one operation; 0: torch's choice, a thread for each core

    config.data = data = ConfigDict()
    data.name = "digits"  # digits, toy, folder, celeba, shards, arrays, cifar10, mnist, fashion_mnist; none: no data
    data.root = ""  # where the files are; docs/data.md tells what each takes (all but digits, toy, none)
    data.image_size = 64  # pixels (folder, celeba, shards, none)
    data.channels = 3  # 1 or 3 (folder, shards, none)
    data.crop = "center"  # center, none; celeba140, celeba128 (folder, celeba, shards)
    data.holdout = 0.1  # share of the images kept for likelihood (folder, shards, arrays)
    data.attributes = ""  # labels: names divided by commas; celeba: or all; "": unlabelled (celeba, none)
    data.corrupt = "fail"  # what an unreadable image does; fail, skip (folder, celeba, shards)
    data.cache = "cache"  # folder of images decoded once for all; "": decode them each time (folder, celeba, shards)
    data.distribution = "checkerboard"  # checkerboard, moons, rings, swissroll, gaussians (toy)
    data.size = 20_000  # points (toy)
    data.low = -1.0  # model value of the darkest level (images)
    data.high = 1.0  # model value of the brightest level (images)
    data.levels = 256  # of a pixel (none)
    data.classes = 0  # number of class labels (none)
    data.random_flip = False  # mirror training images left to right
    data.augment = 0.0  # probability of each of EDM's augmentations, which the network is told; 0: none
    data.dequantize = True  # train on levels made uniform in their bin: for likelihood; False: for looks
    data.workers = 2  # threads that load and decode in the background; 0: none

    config.sde = sde = ConfigDict()
    sde.name = "vp"  # vp, subvp, ve, cosine, edm
    sde.beta_min = placeholder(float)  # vp, subvp; None: 0.1
    sde.beta_max = placeholder(float)  # vp, subvp: 20; cosine: 999
    sde.sigma_min = placeholder(float)  # ve: 0.01; edm: 0.002
    sde.sigma_max = placeholder(float)  # ve: 50; edm: 80
    sde.rho = placeholder(float)  # edm: 7
    sde.s = placeholder(float)  # cosine: 0.008

    config.model = model = ConfigDict()
    model.name = "unet"  # unet, ncsnpp, adm, dit (images), mlp (vectors)
    model.channels = 128  # images: width of the first level; dit: of a token, a multiple of 4
    model.channel_mult = (1, 2, 2, 2)  # unet, ncsnpp, adm: width of each level, in multiples of channels
    model.res_blocks = 2  # unet, ncsnpp, adm: residual blocks in each level
    model.attention_resolutions = (16,)  # unet, ncsnpp, adm: resolutions with self-attention
    model.heads = 1  # unet, adm, dit: attention heads
    model.head_channels = placeholder(int)  # unet, adm: channels of a head, in place of heads
    model.scale_shift = True  # adm: the embedding scales and shifts a normalisation; False: it is added
    model.resample_in_blocks = False  # adm: resolutions change inside residual blocks
    model.block = "biggan"  # ncsnpp: biggan, ddpm (where the resolution changes)
    model.fir = (1, 3, 3, 1)  # ncsnpp: filter of the resampling; (): nearest and means
    model.skip_rescale = True  # ncsnpp: divide sums by sqrt 2
    model.progressive = "none"  # ncsnpp: growing of the output; none, skip, residual
    model.progressive_input = "none"  # ncsnpp: of the input, likewise
    model.combine = "sum"  # ncsnpp: how a skip input joins; sum, cat
    model.embedding = "positional"  # unet: or cosines_first, steps; ncsnpp: or fourier (conditioning log_sigma)
    model.embedding_steps = 1000  # unet: length of the chain whose steps have learned rows (embedding steps)
    model.fourier_scale = 16.0  # ncsnpp: standard deviation of the frequencies
    model.groups = placeholder(int)  # unet, ncsnpp: of the normalisations; None: channels / 4, at most 32
    model.norm_eps = 1e-6  # unet: added to the variances there
    model.downsample_padding = 1  # unet: 1, or 0 for below and on the right only
    model.learned_variance = False  # adm, dit: more outputs, for the variance of a chain; samplers leave them aside
    model.centered = True  # ncsnpp: the data are on [-1, 1]; False: on [0, 1]
    model.scale_by_sigma = False  # ncsnpp: divide the output by sigma (VE, with prediction score)
    model.patch_size = 2  # dit: side of a patch in pixels, a divisor of the image's sides
    model.depth = 12  # dit: number of blocks
    model.mlp_ratio = 4  # dit: hidden width of a block's MLP, in multiples of channels
    model.width = 128  # mlp: hidden width
    model.blocks = 3  # mlp: residual blocks
    model.dropout = 0.1  # probability, in every residual block; of images in multiples of 1/256
    model.conditional = False  # tell the network the label: the class, or the attributes
    model.prediction = "eps"  # eps, score, x0, v, edm
    model.conditioning = "time"  # time, time_left, log_snr, log_sigma, chain
    model.chain = "linear"  # conditioning chain: linear, scaled_linear, sigmoid, cosine
    model.chain_steps = 1000  # conditioning chain: its length
    model.chain_first = placeholder(float)  # conditioning chain: its first beta; None: 0.1 / chain_steps
    model.chain_last = placeholder(float)  # conditioning chain: its last beta; None: 20 / chain_steps
    model.chain_scale = 1.0  # conditioning chain: what a step is multiplied with
    model.sigma_data = 0.5  # standard deviation of the data in model units (prediction edm)
    model.precision = "auto"  # float32, bfloat16; auto: bfloat16 where the hardware has it

    config.training = training = ConfigDict()
    training.steps = 0  # optimizer steps; 0: by epochs
    training.epochs = 0  # passes over the data; 0: by steps
    training.batch_size = FieldReference(128, object)  # images in one optimizer step; auto: a power of two that fits
    training.parallel = "ddp"  # of several processes each has all weights (ddp), or a share of them (fsdp)
    training.accumulation = FieldReference(1, object)  # parts of a batch, to save memory; auto: as few as fit
    training.checkpointing = False  # keep the inputs of blocks alone, and compute again (docs/memory.md)
    training.learning_rate = 2e-4  # largest one, of the schedule below
    training.beta1 = 0.9  # Adam
    training.beta2 = 0.999  # Adam
    training.eps = 1e-8  # Adam
    training.weight_decay = 0.0  # AdamW's; 0 is Adam
    training.warmup_steps = 5000  # the learning rate rises linearly
    training.decay = "none"  # none, cosine, linear: to 0 at the last step
    training.grad_clip = 1.0  # largest norm of the gradient; 0: none
    training.ema_decay = 0.9999  # of the averaged weights, which are sampled and scored
    training.averages = ""  # more averages, kept beside: "0.999", "power:0.05,power:0.1", ... (docs/averages.md)
    training.ema_snapshot_every = 0  # steps between snapshots of those by power functions, for other widths; 0: none
    training.loss = "continuous"  # continuous (denoising score matching), ddpm (L_simple on a chain)
    training.ddpm_steps = 500  # length of that chain
    training.weighting = "uniform"  # continuous: uniform (DDPM's), likelihood (g^2 on the score's error)
    training.time_law = "uniform"  # continuous: uniform, log_snr, logistic (in the log-SNR)
    training.importance = False  # continuous: the law only proposes t; the loss is divided by its density
    training.low_discrepancy = True  # continuous: spread the times of a batch evenly
    training.label_dropout = 0.1  # conditional models: share of the samples that are trained on without their label
    training.attribute_dropout = 0.5  # attributes: share of the samples of which only some are told
    training.log_every = 100  # steps
    training.checkpoint_every = 5000  # steps
    training.keep_checkpoints = 2  # newest ones that are kept
    training.sample_every = 10_000  # steps between sample pictures; 0: none
    training.heldout_every = 5000  # steps between losses on held-out data (likelihood.split); 0: none
    training.heldout_images = 512  # first images of the split on which it is computed; 0: all
    training.evaluate_every = 0  # steps between evaluations of samples (section evaluation, one draw); 0: none
    training.evaluate_images = 1000  # samples of these
    training.time_limit = 0.0  # minutes after which training saves and stops; 0: none
    training.cuda_graph = True  # on a GPU, the gradient as one CUDA graph; not with checkpointing or data.augment

    config.sampling = sampling = ConfigDict()
    sampling.labels = ""  # "3", "3,5", "Smiling=1,Male=0"; "none": without; "": in turns (docs/guidance.md)
    sampling.guidance = 1.0  # scale of classifier-free guidance; 1: none
    sampling.guidance_low = 0.0  # smallest sigma / alpha with guidance
    sampling.guidance_high = placeholder(float)  # largest; None: no bound
    sampling.sampler = "deis"  # docs/samplers.md tells which one when (flag --sampler)
    sampling.num_images = 64  # samples to draw
    sampling.batch_size = 64  # samples drawn at once
    sampling.seed = 0  # of all noise in sampling
    sampling.steps = placeholder(int)  # None: the sampler's own, e.g. deis 20, ancestral 500; adaptive ones need none
    sampling.grid = placeholder(str)  # uniform, quadratic, log_snr, karras, asinh, or times "1,0.5,0.01"; None: its own
    sampling.t_end = placeholder(float)  # where the steps stop; None: 0.001 (deis and ipndm from 24 steps on: 0.0003)
    sampling.t_start = placeholder(float)  # where they start; None: 1; earlier for editing from a noised image
    sampling.denoise = True  # return E[x0 | x] at t_end, without its last noise
    sampling.rho = placeholder(float)  # grid karras (None: 7) or asinh (None: 2; deis, ipndm: points - 1)
    sampling.threshold = "none"  # of the denoised estimate: none, clip, dynamic
    sampling.limit = 1.0  # threshold: the data lie in [-limit, limit]
    sampling.quantile = 0.995  # threshold dynamic
    sampling.variable = "log_snr"  # deis: log_snr, time, rho
    sampling.order = placeholder(int)  # dpm_solver, dpmpp, unipc, deis, ipndm, dpmpp_sde; None: the sampler's own
    sampling.eta = placeholder(float)  # noise of ddim (None: 0), exponential_sde and dpmpp_sde (None: 1)
    sampling.variance = "posterior"  # ancestral: posterior, beta
    sampling.predictor = "reverse_diffusion"  # pc: ancestral, euler_maruyama, exponential_sde, ddim, heun, none, ...
    sampling.corrector = "annealed_langevin"  # pc: annealed_langevin, langevin
    sampling.snr = 0.16  # pc: signal-to-noise ratio of the corrector
    sampling.corrector_steps = 1  # pc: corrector updates in each step
    sampling.corrector_first = False  # pc: before the predictor rather than after it
    sampling.churn = 40.0  # stochastic_heun: noise replaced over the run
    sampling.churn_min = 0.05  # stochastic_heun: smallest sigma / alpha with churn
    sampling.churn_max = 50.0  # stochastic_heun: largest
    sampling.noise_scale = 1.0  # stochastic_heun: standard deviation of that noise
    sampling.method = "dopri5"  # ode: dopri5, dopri8, bosh3, euler, midpoint, heun2, rk4, scipy_rk45, ...
    sampling.rtol = placeholder(float)  # relative tolerance; None: ode 1e-5, adaptive_sde 0.02
    sampling.atol = placeholder(float)  # absolute tolerance; None: ode 1e-5, adaptive_sde 0.0078
    sampling.first_step = 0.01  # adaptive_sde: size of its first step
    sampling.max_nfe = 10_000  # ode, adaptive_sde: give up after this many evaluations
    sampling.trajectory = 9  # moments in the strip and the animation, before the finished samples; 0: none

    config.likelihood = likelihood = ConfigDict()
    likelihood.split = "test"  # train, test (celeba: valid too)
    likelihood.num_images = 0  # first images of the split; 0: all
    likelihood.batch_size = 256  # images scored at once
    likelihood.seed = 0  # of dequantisation, probes, and the draws of the bounds
    likelihood.estimate = "ode"  # ode, elbo (the SDE's bound), ddpm (bound of the chain of training.ddpm_steps), all
    likelihood.dequantization = placeholder(str)  # uniform, truncated_normal, variational; None: by data.dequantize
    likelihood.repeats = 1  # draws of each image (probes are shared); from two on, ode gives the weighted bound too
    likelihood.divergence = "hutchinson"  # hutchinson, exact
    likelihood.probes = 1  # Hutchinson probes
    likelihood.noise = "rademacher"  # rademacher, gaussian
    likelihood.method = "dopri5"  # as sampling.method
    likelihood.steps = 100  # of fixed-step methods
    likelihood.rtol = 0.01  # relative tolerance of each image; docs/likelihood.md has what it costs and errs
    likelihood.atol = 0.01  # absolute tolerance
    likelihood.log_prob_care = 20.0  # how much tighter than the state log p is held
    likelihood.max_nfe = 10_000  # give up after this many evaluations
    likelihood.check = 0  # images that are scored again at a tenth of the tolerance, to see what moves
    likelihood.precision = "float32"  # float32, bfloat16
    likelihood.samples = 32  # elbo: places of the integral for each image; ddpm: transitions
    likelihood.codes = False  # ode: keep the latent codes of the first draw (.npz)

    config.evaluation = evaluation = ConfigDict()  # its samples are drawn as the section sampling tells
    evaluation.split = "train"  # of the data with which samples are compared
    evaluation.reference_images = 50_000  # first images of it; 0: all
    evaluation.num_images = 50_000  # samples in a draw
    evaluation.draws = 3  # of which mean and deviation are told; their seeds are sampling.seed and those that follow
    evaluation.compare = ""  # several samplers and steps, "deis:10,heun:18,ode"; "": sampling.sampler
    evaluation.extractor = "auto"  # of features: inception, classifier, identity, MODULE:ATTRIBUTE (docs/evaluation.md)
    evaluation.weights = ""  # file of Inception's; "": torch hub's folder, where they are downloaded once
    evaluation.classifier_seed = 0  # of the classifier's training
    evaluation.reference = ""  # file of features, or of published moments mu and sigma (.npz); "": made of the data
    evaluation.best = "auto"  # metric by which training keeps the best checkpoint; auto: the Fréchet distance

    config.averaging = averaging = ConfigDict()  # its held-out images and their noise are those of likelihood
    averaging.widths = "0.03,0.05,0.07,0.1,0.14,0.2"  # averages by power functions that snapshots are to give
    averaging.step = 0  # training step at which; one of a snapshot; 0: that of the checkpoint

    config.doctor = doctor = ConfigDict()
    doctor.num_images = 0  # samples of each split that are read, drawn at random; 0: all

    config.interpolation = interpolation = ConfigDict()
    interpolation.split = "test"  # of the images
    interpolation.first = 0  # index of the first image; pairs are neighbours
    interpolation.pairs = 6  # rows of the picture
    interpolation.moments = 9  # points of each way, with both ends
    interpolation.rtol = 1e-4  # relative tolerance, there and back; max_nfe and precision are the likelihood's
    interpolation.atol = 1e-4  # absolute tolerance

    config.editing = editing = ConfigDict()
    editing.task = "inpainting"  # or colourisation, super_resolution, deblurring, image_to_image, relabel
    editing.num_images = 6  # results
    editing.sampler = "dpmpp_sde"  # stochastic ones mend what guidance errs (flag --sampler); sampling has its settings
    editing.method = "pseudo_inverse"  # restoring: replacement, dps, pseudo_inverse, moment_matching
    editing.noise = 0.02  # restoring: standard deviation of the noise in what is known, in model units
    editing.degrade = False  # restoring: the picture given is a good one, to be made small or blurred first
    editing.factor = 2  # super_resolution: by how much the picture given is smaller
    editing.blur = 1.0  # deblurring: standard deviation of the blur in pixels
    editing.scale = 1.0  # dps: strength
    editing.sigma_data = 0.5  # pseudo_inverse: standard deviation of the data, in model units
    editing.iterations = 1  # moment_matching: of conjugate gradients; each is a gradient through the network
    editing.labels = ""  # what the image shows, as sampling.labels; "": what its data tell, else unknown

    config.reporting = reporting = ConfigDict()
    reporting.training_images = 10_000  # at most, among which the nearest of each sample is looked for; 0: no search

    config.dequantizer = dequantizer = ConfigDict()
    dequantizer.steps = 1000  # optimizer steps
    dequantizer.batch_size = 64  # images in one step
    dequantizer.learning_rate = 1e-3  # at the start; it falls to 0 linearly
    dequantizer.ema_decay = 0.99  # of the averaged weights, which are used
    dequantizer.channels = 32  # width of the networks
    dequantizer.layers = 4  # couplings
    return config
