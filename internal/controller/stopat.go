package controller

import (
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/deis/deis/internal/paas"
	"github.com/deis/deis/internal/rollout"
)

// CheckStopAt refuses a Config.TestStopAt that no rollout comes to.
func CheckStopAt(text string) error {
	kind, step, _ := strings.Cut(text, ":")
	steps := rollout.Steps
	switch paas.RolloutKind(kind) {
	case paas.RolloutDeploy, paas.RolloutConfig, paas.RolloutRollback, paas.RolloutScale, paas.RolloutRestart:
	case rollout.KindDestroy:
		steps = rollout.DestroySteps
	default:
		return fmt.Errorf("%q is not KIND:STEP with the kind of a rollout or %s", text, rollout.KindDestroy)
	}
	if !slices.Contains(steps, step) {
		return fmt.Errorf("%s has the steps %s", kind, strings.Join(steps, ", "))
	}
	return nil
}

// stopAt ends this process at a step as the kernel would, so that tests see what is left.
func stopAt(text string) func(paas.RolloutKind, string) {
	if text == "" {
		return nil
	}
	return func(kind paas.RolloutKind, step string) {
		if text == string(kind)+":"+step {
			_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL) // the signal is delivered before the call returns
			select {}
		}
	}
}
