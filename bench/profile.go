package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/cloud-cup/cloud-cup/bench/flame"
)

// partProfile looks where the time of the programs goes.
const partProfile = "profile"

// profileHertz is how often perf looks. It is prime, so that it does not beat
// with anything.
const profileHertz = 4999

// profileLead is how long a load runs before perf begins, and after it ended.
const profileLead = 300 * time.Millisecond

// profileLoads are the loads under which profiles are made.
var profileLoads = []Load{plain("100 B, 64 connections", 64, 100), plain("16 KiB, 64 connections", 64, 16<<10)}

// Profiles are where the time went, without rounds: they explain figures, and
// are none themselves.
type Profiles struct {
	// Missing says why there are none.
	Missing  string    `json:"missing,omitempty"`
	Command  []string  `json:"command,omitempty"` // PIDS stands for the program's processes
	Profiles []Profile `json:"profiles,omitempty"`
}

// Profile is one program under one load.
type Profile struct {
	Load    string `json:"load"`
	Program string `json:"program"`
	Samples int    `json:"samples"`
	// Shares of the samples. What is neither the kernel's nor that of Go's
	// runtime and library is the program's own code.
	Kernel  float64 `json:"kernel"`
	Library float64 `json:"library"`
	Graph   string  `json:"graph,omitempty"` // file beside the raw results
}

func (o *options) profileLength() time.Duration { return max(time.Second, o.length()) }

func profileDuration(o *options) time.Duration {
	return time.Duration(len(profileLoads)*closedPrograms) * (o.profileLength() + 3*profileLead)
}

// profile profiles every program by perf(1), if it is there and allowed.
func (b *bench) profile(ctx context.Context) error {
	p := &Profiles{Command: profileCommand("PIDS", "FILE")}
	b.results.Profiles = p
	if _, err := exec.LookPath("perf"); err != nil {
		p.Missing = "perf is not installed (Debian's package linux-perf)"
		return nil
	}
	l, err := b.lineUp(ctx, profileLoads, b.everyone)
	if err != nil {
		return err
	}
	for i := range profileLoads {
		for program := range l.servers {
			made, err := b.profileOne(ctx, l, &profileLoads[i], program)
			if err != nil {
				// A kernel may forbid it: that says nothing of the programs.
				p.Missing, p.Profiles = err.Error(), nil
				return errors.Join(context.Cause(ctx), l.stop())
			}
			fmt.Fprintf(os.Stderr, "profile  %-24s %-16s %d samples, %.1f %% in the kernel\n", made.Load, made.Program, made.Samples, 100*made.Kernel)
			p.Profiles = append(p.Profiles, made)
		}
	}
	return l.stop()
}

// profileCommand counts CPU time by a clock, because virtual machines often
// have no hardware counters.
func profileCommand(pids, file string) []string {
	return []string{"perf", "record", "--quiet", "--event=cpu-clock", "--freq=" + strconv.Itoa(profileHertz), "--call-graph=fp",
		"--delay=" + strconv.FormatInt(profileLead.Milliseconds(), 10), "--pid=" + pids, "--output=" + file}
}

// profileOne profiles program i under a load, and draws our own programs.
func (b *bench) profileOne(ctx context.Context, l *lineup, load *Load, i int) (Profile, error) {
	made := Profile{Load: load.Name, Program: l.programs[i].Name}
	pids, err := family(l.servers[i].cmd.Process.Pid)
	if err != nil {
		return made, err
	}
	file := filepath.Join(b.dir, "perf.data")
	length := b.o.profileLength()
	command := profileCommand(joined(pids), file)
	command = append(command, "--", "sleep", fmt.Sprint((profileLead + length).Seconds()))
	perf := exec.CommandContext(ctx, command[0], command[1:]...)
	perf.SysProcAttr = ownGroup()
	var problems bytes.Buffer
	perf.Stdout, perf.Stderr = &problems, &problems
	if err := perf.Start(); err != nil {
		return made, err
	}
	_, _, askErr := l.ask(ctx, load, i, 2*profileLead+length)
	if err := perf.Wait(); err != nil {
		return made, fmt.Errorf("perf record: %w: %s", err, bytes.TrimSpace(problems.Bytes()))
	}
	root, err := readSamples(ctx, file)
	if err := errors.Join(askErr, err); err != nil {
		return made, err
	}
	kernel, library := root.Shares()
	made.Samples, made.Kernel, made.Library = root.Count, kernel, library
	if l.programs[i].Ours {
		made.Graph, err = b.draw(root, &made)
	}
	return made, err
}

// readSamples reads what perf recorded.
func readSamples(ctx context.Context, file string) (*flame.Frame, error) {
	var problems bytes.Buffer
	script := exec.CommandContext(ctx, "perf", "script", "--input="+file, "--fields=comm,tid,ip,sym")
	script.SysProcAttr = ownGroup()
	script.Stderr = &problems
	out, err := script.Output()
	if err != nil {
		return nil, fmt.Errorf("perf script: %w: %s", err, bytes.TrimSpace(problems.Bytes()))
	}
	root, err := flame.Read(bytes.NewReader(out))
	if err != nil {
		return nil, fmt.Errorf("perf script: %w", err)
	}
	return root, nil
}

// draw writes a flame graph beside the raw results, and returns its name.
func (b *bench) draw(root *flame.Frame, p *Profile) (string, error) {
	words := strings.FieldsFunc(p.Program+" "+p.Load, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
	name := b.results.stamp() + "-" + strings.Join(words, "-") + ".svg"
	dir := b.o.resultsDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	var image bytes.Buffer
	if err := flame.SVG(&image, root, fmt.Sprintf("%s, %s, commit %s", p.Program, p.Load, b.results.Build.Commit)); err != nil {
		return "", err
	}
	return name, os.WriteFile(filepath.Join(dir, name), image.Bytes(), 0o644)
}

// writeProfiles is the section of the profiles.
func (r *Results) writeProfiles(w *strings.Builder) {
	p := r.Profiles
	if p == nil {
		return
	}
	fmt.Fprintf(w, "\n### Where the time goes\n\n")
	if p.Missing != "" {
		fmt.Fprintf(w, "No profiles: %s.\n", p.Missing)
		return
	}
	fmt.Fprintf(w, "Shares of CPU time while a load runs, by `%s`. A wait costs nothing and is not seen.\n\n", strings.Join(p.Command, " "))
	w.WriteString("| load | program | kernel | Go's runtime and library | its own code | flame graph |\n|---|---|---|---|---|---|\n")
	for i := range p.Profiles {
		f := &p.Profiles[i]
		graph := "-"
		if f.Graph != "" {
			graph = fmt.Sprintf("[%s](bench/results/%s)", f.Graph, f.Graph)
		}
		fmt.Fprintf(w, "| %s | %s | %.1f %% | %.1f %% | %.1f %% | %s |\n", f.Load, f.Program, 100*f.Kernel, 100*f.Library,
			100*(1-f.Kernel-f.Library), graph)
	}
}

// profileFailures is nothing: that perf cannot be used stands in the tables.
func (r *Results) profileFailures() error { return nil }
