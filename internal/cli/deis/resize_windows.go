package deis

import "os"

// notifyResize does nothing: there is no such signal.
func notifyResize(chan<- os.Signal) (stop func()) { return func() {} }
