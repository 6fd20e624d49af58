package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// partCost measures what access logs and scrapes of metrics cost.
const partCost = "cost"

// Runs of this part are short and many: what is switched on costs little, and is
// compared with the same program without it in the same round.
const (
	costRounds   = 11
	costLength   = 500 * time.Millisecond
	costLogWait  = 3 * time.Second // for the first lines to be in the file
	costRead     = 1 << 20         // of a log at a time
	costVariants = 15
)

// costLoad is what all are asked.
var costLoad = plain("100 B, 64 connections", 64, 100)

// Costs are the runs with something switched on and off.
type Costs struct {
	Load     Load      `json:"load"`
	Client   string    `json:"client"` // its command; ADDRESS stands for the program's
	Programs []Program `json:"programs"`
	Runs     []CostRun `json:"runs"` // in the order in which they were made
}

// CostRun is one variant of a program in one round.
type CostRun struct {
	Run
	Lines int64 `json:"lines,omitempty"` // in the access log after the run; it is emptied then
}

// variant is a way to run a program: as it is, or with something switched on.
type variant struct {
	what    string   // is switched on
	edits   []string // of the configuration: pairs for candidate.edit
	log     string   // file of the access log, if it has one
	metrics string   // address of the metrics, if they are read
}

// name is that of a program in this way.
func (v *variant) name(program string) string {
	if v.what == "" {
		return program
	}
	return program + ", " + v.what
}

func (o *options) costPlan() (rounds int, length time.Duration) {
	if o.thorough() {
		return costRounds, costLength
	}
	return o.rounds, min(o.length(), costLength)
}

func costDuration(o *options) time.Duration {
	rounds, length := o.costPlan()
	return costVariants * time.Duration(rounds) * (length + overhead)
}

// cupVariants are the ways to run one of our engines. Logs will stand in dir.
func cupVariants(dir, engine string) ([]variant, error) {
	const after = `"workers": 1,`
	list := []variant{{}}
	for _, format := range []string{"combined", "cup", "json"} {
		log := filepath.Join(dir, engine+"-"+format+".log")
		list = append(list, variant{what: "log " + format, log: log,
			edits: []string{after, after + "\n" + `  "access_log": {"file": "` + log + `", "format": "` + format + `"},`}})
	}
	metrics, err := freeAddress()
	return append(list, variant{what: "metrics read", metrics: metrics,
		edits: []string{after, after + "\n" + `  "admin": {"metrics": "` + metrics + `"},`}}), err
}

// nginxVariants are the ways to run nginx.
func nginxVariants(dir string) []variant {
	list := []variant{{edits: []string{"nginx.pid", "cost.pid"}}}
	for _, way := range [][2]string{{"log combined", ""}, {"log combined, buffered", " buffer=256k flush=1s"}} {
		file := strings.ReplaceAll(way[0], " ", "-")
		log := filepath.Join(dir, file+".log")
		list = append(list, variant{what: way[0], log: log,
			edits: []string{"nginx.pid", file + ".pid", "access_log off;", "access_log " + log + " combined" + way[1] + ";"}})
	}
	return list
}

// haproxyVariants are the ways to run haproxy, which writes to no file that it
// opens: but its standard output is one.
func haproxyVariants(dir string) []variant {
	const what, after = "log httplog", "    mode http\n"
	v := variant{what: what, edits: []string{after, after + "    log stdout format raw local0\n    option httplog\n"}}
	v.log = logFile(dir, v.name(nameHAProxy))
	return []variant{{}, v}
}

// variants are all ways to run the programs that work here; ways is by the same
// index.
func (b *bench) variants(dir, backend string) (list []candidate, ways []variant, err error) {
	base, err := candidates(b.o, &b.results.Build, dir, backend)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range base {
		_, engine, _ := strings.Cut(c.Name, " ")
		var config func(*site) string
		var command func(string) []string
		var here []variant
		switch c.Name {
		case reference:
			config, command, here = nginxConfig, nginxCommand, nginxVariants(dir)
		case nameHAProxy:
			config, command, here = haproxyConfig, haproxyCommand, haproxyVariants(dir)
		default:
			config, command = cupConfig, cupCommand(b.o.cup, engine)
			if here, err = cupVariants(dir, engine); err != nil {
				return nil, nil, err
			}
		}
		for i := range here {
			file := filepath.Join(dir, fmt.Sprintf("cost-%s-%d", strings.ReplaceAll(c.Name, " ", "-"), i))
			made, err := newCandidate(b.o, here[i].name(c.Name), file, backend, config, command)
			if err == nil {
				err = made.edit(here[i].edits...)
			}
			if err != nil {
				return nil, nil, err
			}
			list, ways = append(list, made), append(ways, here[i])
		}
	}
	return list, ways, nil
}

// cost makes all runs.
func (b *bench) cost(ctx context.Context) error {
	var ways []variant
	loads := []Load{costLoad}
	l, err := b.lineUp(ctx, loads, func(dir, backend string) (list []candidate, err error) {
		list, ways, err = b.variants(dir, backend)
		return list, err
	})
	if err != nil {
		return err
	}
	rounds, length := b.o.costPlan()
	b.results.Costs = &Costs{Load: costLoad, Programs: l.programs,
		Client: strings.Join(clientCommand("bin/bench", "bench", b.o.clientCPU, &costLoad, length, costLoad.url("ADDRESS", "")), " ")}
	return errors.Join(b.costRuns(ctx, l, ways, rounds, length), l.stop())
}

func (b *bench) costRuns(ctx context.Context, l *lineup, ways []variant, rounds int, length time.Duration) error {
	order := order(rounds, 1, len(l.servers))
	for i, t := range order {
		v := &ways[t.program]
		scraped := scrape(ctx, v.metrics, length/2)
		r := CostRun{Run: l.run(ctx, &costLoad, t.program, length)}
		r.Round = t.round + 1
		problem := <-scraped
		if v.log != "" && problem == nil {
			r.Lines, problem = emptyLog(v.log)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if problem != nil && r.Failure == "" {
			r.Failure = problem.Error()
		}
		b.results.Costs.Runs = append(b.results.Costs.Runs, r)
		fmt.Fprintf(os.Stderr, "%3d/%d  round %d  %-40s %s\n", i+1, len(order), r.Round, r.Program, r.progress())
	}
	return nil
}

// scrape reads the metrics at an address, if it is one, after a while.
func scrape(ctx context.Context, address string, after time.Duration) <-chan error {
	done := make(chan error, 1)
	if address == "" {
		done <- nil
		return done
	}
	time.AfterFunc(after, func() {
		done <- func() error {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
			if err != nil {
				return err
			}
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				return err
			}
			defer response.Body.Close()
			text, err := io.ReadAll(response.Body)
			if err == nil && (response.StatusCode != http.StatusOK || len(text) == 0) {
				err = fmt.Errorf("metrics: %s, %d bytes", response.Status, len(text))
			}
			return err
		}()
	})
	return done
}

// emptyLog counts the lines of a log, when there are some, and empties it.
func emptyLog(path string) (int64, error) {
	for began := time.Now(); ; time.Sleep(retryPause) {
		info, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		if info.Size() > 0 {
			break
		}
		if time.Since(began) > costLogWait {
			return 0, fmt.Errorf("nothing was written to %s", filepath.Base(path))
		}
	}
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	lines, part := int64(0), make([]byte, costRead)
	for {
		n, err := file.Read(part)
		lines += int64(bytes.Count(part[:n], []byte("\n")))
		if err == io.EOF {
			return lines, os.Truncate(path, 0)
		}
		if err != nil {
			return lines, err
		}
	}
}

// writeCosts writes the table of what was switched on.
func (r *Results) writeCosts(w *strings.Builder) {
	if r.Costs == nil {
		return
	}
	c := r.Costs
	all := &Results{}
	lines, requests := map[string]int64{}, map[string]int64{}
	for i := range c.Runs {
		run := &c.Runs[i]
		all.Runs = append(all.Runs, run.Run)
		lines[run.Program] += run.Lines
		requests[run.Program] += run.Requests
	}
	fmt.Fprintf(w, "\n### What logs and metrics cost\n\n")
	fmt.Fprintf(w, "CPU time per request with something switched on, as a ratio to that of the same program without it in the same round; its\n"+
		"median, and the %.0f %% interval of it. %s. Metrics are counted in any case; here they are read as well,\n"+
		"once in each run. Logs go to a file, haproxy's by its standard output; Cloud Cup and \"buffered\" write 256 KiB at a time.\n\n", 100*confidence, c.Load.Name)
	fmt.Fprintf(w, "| program | switched on | CPU per request, us | ratio | interval | rounds | lines per request |\n|---|---|---|---|---|---|---|\n")
	for _, p := range c.Programs {
		of, what, _ := strings.Cut(p.Name, ", ")
		micro := three(all.figures(c.Load.Name, p.Name, cpuPerRequest.of).median)
		if what == "" {
			fmt.Fprintf(w, "| %s | | %s | | | %d | |\n", of, micro, len(all.find(c.Load.Name, p.Name)))
			continue
		}
		var ratios []float64
		for _, ratio := range all.ratios(c.Load.Name, p.Name, of, cpuPerRequest.of) {
			ratios = append(ratios, ratio)
		}
		logged := "-"
		if n := lines[p.Name]; n > 0 {
			logged = three(float64(n) / float64(requests[p.Name]))
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %d | %s |\n", of, what, micro,
			strings.ReplaceAll(intervalText(ratios), "\t", " | "), len(ratios), logged)
	}
}

// costFailures tells which runs went wrong.
func (r *Results) costFailures() error {
	if r.Costs == nil {
		return nil
	}
	var list []error
	for i := range r.Costs.Runs {
		if run := &r.Costs.Runs[i]; run.Errors() > 0 || run.Failure != "" {
			list = append(list, fmt.Errorf("round %d, %s: %s", run.Round, run.Program, run.progress()))
		}
	}
	return errors.Join(list...)
}
