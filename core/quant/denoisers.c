/* denoisers.c - the methods for denoisers: their parameters, and which stages each one has (qncd.md 1). */
#include "quant/qncd_int.h"

static const char *const weight_choices[] = { "4", "6", "8", NULL };
static const char *const activation_choices[] = { "4", "6", "8", NULL };
static const char *const group_choices[] = { "0", "32", "64", "128", NULL };
static const char *const time_choices[] = { "w8", "float", NULL };
static const char *const range_choices[] = { "minmax", "mse", NULL };
static const char *const sampler_choices[] = { "ddim", "ddpm", NULL };
static const char *const edge_choices[] = { "w8", "float", "int8", NULL };
static const char *const clip_choices[] = { "auto", "on", "off", NULL };
static const char *const transformer_choices[] = { "linear", "fp", "w8a8", "wXaY", NULL };
static const char *const softmax_choices[] = { "8", "16", NULL };
static const char *const rounding_choices[] = { "auto", "nearest", "gptq", "layer", "block", NULL };
static const char *const profile_choices[] = { "cpu", "full", NULL };
static const char *const gamma_choices[] = { "include", "exclude", NULL };
static const char *const rank_choices[] = { "0", "8", "16", "32", "64", NULL };
static const char *const smoothing_choices[] = { "embedding", "balanced", NULL };
static const char *const offset_choices[] = { "start", "paper", NULL };
static const char *const grain_choices[] = { "scalar", "channel", NULL };

/* clang-format off */
#define PTQ_ROWS(range_) \
    { .name = "weight_bits", .type = QD_PARAM_INT, .fallback = "8", .choices = weight_choices, \
      .summary = "Bits of each weight." }, \
    { .name = "activation_bits", .type = QD_PARAM_INT, .fallback = "8", .choices = activation_choices, \
      .summary = "Bits of each layer input." }, \
    { .name = "group_size", .type = QD_PARAM_INT, .fallback = "0", .choices = group_choices, \
      .summary = "Input channels whose weights share a scale; 0: all of an output channel, which is the fastest." }, \
    { .name = "weight_range", .type = QD_PARAM_CHOICE, .fallback = range_, .choices = range_choices, \
      .summary = "How the range of each output channel's weights is chosen: its largest value, or a search for the least error." }, \
    { .name = "activation_range", .type = QD_PARAM_CHOICE, .fallback = range_, .choices = range_choices, \
      .summary = "How the range of each layer input is chosen: everything seen, or a search for the least error." }, \
    { .name = "symmetric_activations", .type = QD_PARAM_BOOL, .fallback = "false", \
      .summary = "Signed codes around zero for layer inputs instead of codes that fit the range at both ends." }, \
    { .name = "sampler", .type = QD_PARAM_CHOICE, .fallback = "ddim", .choices = sampler_choices, \
      .summary = "The sampler whose trajectories calibrate and measure; take the one that will be used." }, \
    { .name = "steps", .type = QD_PARAM_INT, .fallback = "50", .min = 1, .max = 10000, \
      .summary = "Sampling steps of those trajectories." }, \
    { .name = "calibration_samples", .type = QD_PARAM_INT, .fallback = "32", .min = 16, .max = 4096, \
      .summary = "How many trajectories are watched." }, \
    { .name = "calibration_steps", .type = QD_PARAM_INT, .fallback = "10", .min = 2, .max = 1000, \
      .summary = "At how many steps of each trajectory, evenly from the first to the last." }, \
    { .name = "clip", .type = QD_PARAM_CHOICE, .fallback = "auto", .choices = clip_choices, \
      .summary = "Clip the predicted image while sampling: as the model's scheduler says, always, or never." }, \
    { .name = "measure_samples", .type = QD_PARAM_INT, .fallback = "8", .min = 1, .max = 1024, \
      .summary = "Trajectories, other than those of the calibration, on which the result is measured." }, \
    { .name = "noise_map_steps", .type = QD_PARAM_INT, .fallback = "10", .min = 0, .max = 1000, \
      .summary = "At how many steps every layer is compared with the float network's for the noise map; 0: no map." }, \
    { .name = "edge_layers", .type = QD_PARAM_CHOICE, .fallback = "float", .choices = edge_choices, \
      .summary = "The layers that read and make the image itself: w8 keeps their weights in 8 bits and computes in float, int8 computes " \
                 "on codes, which costs much quality there and saves next to nothing." }, \
    { .name = "time_layers", .type = QD_PARAM_CHOICE, .fallback = "w8", .choices = time_choices, \
      .summary = "The layers that depend on the time step only: always computed in float, w8 keeps their weights in 8 bits." }, \
    { .name = "transformer", .type = QD_PARAM_CHOICE, .fallback = "w8a8", .choices = transformer_choices, \
      .summary = "Layers of tokens and the products of attention: on codes of 8 bits (w8a8) or of the bits above (wXaY), the layers alone " \
                 "as all others with products in float (linear), or nothing on codes (fp)." }, \
    { .name = "softmax_bits", .type = QD_PARAM_INT, .fallback = "16", .choices = softmax_choices, \
      .summary = "Bits of the softmax's result where attention runs on codes." }, \
    { .name = "skip_layers", .type = QD_PARAM_STRING, .fallback = "", .max = 65536, \
      .summary = "Names of layers to leave in float, with commas between." }, \
    { .name = "split_shortcut", .type = QD_PARAM_BOOL, .fallback = "true", \
      .summary = "Give both halves of a concatenated shortcut input ranges of their own." },

#define RECON_ROWS \
    { .name = "rounding", .type = QD_PARAM_CHOICE, .fallback = "auto", .choices = rounding_choices, \
      .summary = "How weights are rounded: to nearest; with the error of each column carried on (gptq); or learned against the float " \
                 "network layer by layer or block by block (AdaRound). auto: learned by block for weights of 4 bits or fewer, else nearest." }, \
    { .name = "recon_profile", .type = QD_PARAM_CHOICE, .fallback = "cpu", .choices = profile_choices, \
      .summary = "How long rounding is learned: cpu is 1000 iterations of 8 samples a block, full is the paper's 20000 of 32." }, \
    { .name = "recon_iterations", .type = QD_PARAM_INT, .fallback = "0", .min = 0, .max = 1000000, \
      .summary = "Iterations a block; 0: as the profile says." }, \
    { .name = "recon_batch", .type = QD_PARAM_INT, .fallback = "0", .min = 0, .max = 256, \
      .summary = "Samples an iteration; 0: as the profile says." },

#define SMOOTH_ROWS \
    { .name = "smooth_gamma", .type = QD_PARAM_CHOICE, .fallback = "include", .choices = gamma_choices, \
      .summary = "Whether smoothing factors also hold the size of the norm's own weight." }, \
    { .name = "smooth_pow2", .type = QD_PARAM_BOOL, .fallback = "false", \
      .summary = "Round smoothing factors to powers of two, so that the float network keeps every bit." },

#define NOISE_ROWS \
    { .name = "reference_samples", .type = QD_PARAM_INT, .fallback = "16", .min = 2, .max = 4096, \
      .summary = "Trajectories on which the noise of the quantized network is compared with the float network." },

#define PROBE_ROWS \
    { .name = "probe_interval", .type = QD_PARAM_INT, .fallback = "10", .min = 1, .max = 10000, \
      .summary = "Steps between two probes while sampling; each costs one call of the network." }, \
    { .name = "probe_offset", .type = QD_PARAM_CHOICE, .fallback = "start", .choices = offset_choices, \
      .summary = "The first probe: at the first step, or where the published code has it." }, \
    { .name = "probe_grain", .type = QD_PARAM_CHOICE, .fallback = "scalar", .choices = grain_choices, \
      .summary = "One estimate for the whole picture, or one for each channel." }, \
    { .name = "kappa", .type = QD_PARAM_NUMBER, .fallback = "3", .min = 0, .max = 1000, \
      .summary = "An estimate counts from so many standard errors on." }, \
    { .name = "mu_max", .type = QD_PARAM_NUMBER, .fallback = "0.05", .min = 0, .max = 10, \
      .summary = "The largest correction of eps a probe may make." },

#define PLUS_ROWS \
    { .name = "low_rank", .type = QD_PARAM_INT, .fallback = "0", .choices = rank_choices, \
      .summary = "Give every layer with weights of 4 bits a branch of so many channels in float that carries the largest part of its weights " \
                 "(SVDQuant): closer to the float network, but slower and larger, and no saving in narrow networks; 0: none." }, \
    { .name = "size_budget", .type = QD_PARAM_NUMBER, .fallback = "0", .min = 0, .max = 1, \
      .summary = "What the result may take of the float network's bytes, 0.2 being a fifth: bits of weights are then chosen layer by layer, " \
                 "few where they harm the least, and weight_bits does not count; 0: weight_bits everywhere." }, \
    { .name = "min_bits", .type = QD_PARAM_INT, .fallback = "4", .choices = weight_choices, \
      .summary = "The fewest bits of weights that size_budget may choose." }, \
    { .name = "max_bits", .type = QD_PARAM_INT, .fallback = "8", .choices = weight_choices, \
      .summary = "The most bits of weights that size_budget may choose." }, \
    { .name = "smoothing", .type = QD_PARAM_CHOICE, .fallback = "balanced", .choices = smoothing_choices, \
      .summary = "Smoothing factors: from the time embedding, for the second convolution of each block (embedding), or for every layer " \
                 "behind a norm those with the least error out of thirteen that are tried (balanced)." }, \
    { .name = "activation_groups", .type = QD_PARAM_INT, .fallback = "25", .min = 1, .max = 100, \
      .summary = "Groups of neighbouring time steps that have activation ranges of their own; 1: one range for all. At least so many steps calibrate." }, \
    { .name = "time_table", .type = QD_PARAM_BOOL, .fallback = "true", \
      .summary = "Keep what depends on the time step alone as a table of the float network's values instead of layers." },

static const qd_param minmax_params[] = { PTQ_ROWS("minmax") { 0 } };
static const qd_param mse_params[] = { PTQ_ROWS("mse") { 0 } };
static const qd_param qdiff_params[] = { PTQ_ROWS("mse") RECON_ROWS { 0 } };
static const qd_param intra_params[] = { PTQ_ROWS("mse") RECON_ROWS SMOOTH_ROWS { 0 } };
static const qd_param inter_params[] = { PTQ_ROWS("mse") RECON_ROWS NOISE_ROWS PROBE_ROWS { 0 } };
static const qd_param qncd_params[] = { PTQ_ROWS("mse") RECON_ROWS SMOOTH_ROWS NOISE_ROWS PROBE_ROWS { 0 } };
static const qd_param compat_params[] = { PTQ_ROWS("mse") RECON_ROWS SMOOTH_ROWS { 0 } };
static const qd_param plus_params[] = { PTQ_ROWS("mse") RECON_ROWS SMOOTH_ROWS NOISE_ROWS PROBE_ROWS PLUS_ROWS { 0 } };
/* clang-format on */

static qd_status run_base(const qd_quant_task *task, const qd_run *run, qd_graph **out, qd_quant_report *report,
                          qd_err *err)
{
    return qd_ptq_run(&(qd_ptq_stages){ .correction = QD_CORRECT_NONE }, task, run, out, report, err);
}

static qd_status run_intra(const qd_quant_task *task, const qd_run *run, qd_graph **out, qd_quant_report *report,
                           qd_err *err)
{
    return qd_ptq_run(&(qd_ptq_stages){ .smooth = true }, task, run, out, report, err);
}

static qd_status run_inter(const qd_quant_task *task, const qd_run *run, qd_graph **out, qd_quant_report *report,
                           qd_err *err)
{
    return qd_ptq_run(&(qd_ptq_stages){ .correction = QD_CORRECT_PROBE }, task, run, out, report, err);
}

static qd_status run_qncd(const qd_quant_task *task, const qd_run *run, qd_graph **out, qd_quant_report *report,
                          qd_err *err)
{
    return qd_ptq_run(&(qd_ptq_stages){ .smooth = true, .correction = QD_CORRECT_PROBE }, task, run, out, report, err);
}

static qd_status run_compat(const qd_quant_task *task, const qd_run *run, qd_graph **out, qd_quant_report *report,
                            qd_err *err)
{
    return qd_ptq_run(&(qd_ptq_stages){ .smooth = true, .correction = QD_CORRECT_COMPAT }, task, run, out, report, err);
}

static qd_status run_plus(const qd_quant_task *task, const qd_run *run, qd_graph **out, qd_quant_report *report,
                          qd_err *err)
{
    return qd_ptq_run(&(qd_ptq_stages){ .smooth = true, .correction = QD_CORRECT_TABLE }, task, run, out, report, err);
}

#define DENOISER_METHOD(name_, summary_, params_, run_)                                                                \
    {                                                                                                                  \
        .name = name_, .summary = summary_, .params = params_, .needs = QD_NEEDS_DENOISER, .role = QD_ROLE_DENOISER,   \
        .run = run_                                                                                                    \
    }

const qd_method qd_method_minmax = DENOISER_METHOD(
    "minmax", "Round to nearest over the whole range seen: the plain baseline.", minmax_params, run_base);
const qd_method qd_method_mse = DENOISER_METHOD(
    "mse", "Round to nearest over the range of least error, for each output channel and each layer input.", mse_params,
    run_base);
const qd_method qd_method_qdiff =
    DENOISER_METHOD("qdiff",
                    "Q-Diffusion: ranges of least error, split shortcuts, and weights of few bits rounded as "
                    "learned block by block.",
                    qdiff_params, run_base);
const qd_method qd_method_qncd_intra = DENOISER_METHOD(
    "qncd-intra", "qdiff, and features smoothed by the time embedding's own pattern (noise inside a step).",
    intra_params, run_intra);
const qd_method qd_method_qncd_inter = DENOISER_METHOD(
    "qncd-inter", "qdiff, and the network's noise probed while sampling and taken off eps (noise across steps).",
    inter_params, run_inter);
const qd_method qd_method_qncd =
    DENOISER_METHOD("qncd", "QNCD: smoothing and the probe together, as in the paper.", qncd_params, run_qncd);
const qd_method qd_method_qncd_compat = DENOISER_METHOD(
    "qncd-compat", "QNCD with the correction exactly as its published sampler makes it, to compare with.",
    compat_params, run_compat);
const qd_method qd_method_qncd_plus =
    DENOISER_METHOD("qncd-plus",
                    "Beyond the paper: smoothing, and paired statistics of float and quantized network "
                    "that correct eps without further calls.",
                    plus_params, run_plus);
