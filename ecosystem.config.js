// Both neurons under pm2: `pm2 start ecosystem.config.js`, or one of them with `--only miner`.
//
// What a neuron is told stands in MINER_OPTIONS and VALIDATOR_OPTIONS, or else in the line of `args` below. Two neurons
// on one machine need a --database each. Keys and addresses belong into .env: pm2 writes the environment that it is
// started from into its own files.

const fs = require("fs");
const path = require("path");

const venv = path.join(__dirname, ".venv", "bin", "python");

const neuron = {
  cwd: __dirname,
  interpreter: fs.existsSync(venv) ? venv : "python3",
  // 2 is a command line, a configuration or a wallet that a restart does not mend. Never 0 here: pm2 takes a process
  // that was killed for one that ended with 0.
  stop_exit_codes: [2],
  // Anything else is tried again after 1 s, 1.5 s, … and at most 15 s.
  exp_backoff_restart_delay: 1000,
  // SIGINT, and SIGKILL after this. A neuron needs a second or two, and a miner up to half a minute while a machine
  // comes up or goes down.
  kill_timeout: 40000,
};

module.exports = {
  apps: [
    {
      ...neuron,
      name: "miner",
      script: "neurons/miner.py",
      args: process.env.MINER_OPTIONS || "--netuid 27 --subtensor.network finney --wallet.name miner",
    },
    {
      ...neuron,
      name: "validator",
      script: "neurons/validator.py",
      args: process.env.VALIDATOR_OPTIONS || "--netuid 27 --subtensor.network finney --wallet.name validator",
    },
  ],
};
