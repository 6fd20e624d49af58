package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// startClient starts a client of ours, which prints a T as JSON. finish waits
// for its end, or for that of ctx. What it says besides is passed on.
func startClient[T any](ctx context.Context, command []string) (finish func() (T, error), err error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.SysProcAttr = ownGroup()
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() (result T, err error) {
		err = cmd.Wait()
		if ctx.Err() != nil {
			return result, context.Cause(ctx)
		}
		if err != nil {
			return result, fmt.Errorf("%s: %w", strings.Join(command, " "), err)
		}
		return result, json.Unmarshal(out.Bytes(), &result)
	}, nil
}
