"""Running an artefact's programs: inputs, noise, the loop over steps, CUDA graphs."""
