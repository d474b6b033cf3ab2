package controller

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/deis/deis/internal/paas"
)

// stopAt is what a test does to this process at a step: a file, asked at each step, says "KIND:STEP" (see
// rollout.Steps and rollout.DestroySteps). Then the file is emptied, so that it happens once, and this process ends
// as the kernel would end it. With "KIND:STEP wait" the rollout stays at the step until the file
// is gone; whatever else shall be killed there can be.
func stopAt(file string) func(paas.RolloutKind, string) {
	if file == "" {
		return nil
	}
	return func(kind paas.RolloutKind, step string) {
		text, err := os.ReadFile(file)
		at, how, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
		if err != nil || at != string(kind)+":"+step || os.Truncate(file, 0) != nil {
			return
		}
		if how != "wait" {
			_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL) // the signal is delivered before the call returns
			select {}
		}
		for !errors.Is(err, fs.ErrNotExist) {
			time.Sleep(stopPoll)
			_, err = os.Stat(file)
		}
	}
}

// stopPoll is the time between two looks at the file of a rollout that waits.
const stopPoll = 5 * time.Millisecond
