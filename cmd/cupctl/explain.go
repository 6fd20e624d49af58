package main

import (
	"fmt"

	"github.com/cloud-cup/cloud-cup/message"
	"github.com/spf13/cobra"
)

// explainCommand prints the table of reasons, which needs no master.
func (c *command) explainCommand() *cobra.Command {
	return &cobra.Command{
		Use: "explain [REASON]", Short: "Tell what a reason means, where it comes from and what to do; without one, list all",
		Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var words []string
			for _, r := range message.Reasons() {
				words = append(words, r.String()+"\t"+r.Explain().Hint)
			}
			if len(args) > 0 {
				words = nil
			}
			return words, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.reasons()
			}
			r, ok := message.ReasonOf(args[0])
			if !ok {
				return fmt.Errorf("there is no reason %q: cupctl explain lists all", args[0])
			}
			return show(c, explain(r), nil, c.screen.explained)
		},
	}
}

// explained is a reason, as JSON.
type explained struct {
	Reason  string   `json:"reason"`
	Status  int      `json:"status,omitempty"` // of the response, if there is one
	Text    string   `json:"text,omitempty"`   // in the response
	Hint    string   `json:"hint"`
	Meaning string   `json:"meaning"`
	Causes  []string `json:"causes"`
	Advice  []string `json:"advice"`
}

func explain(r message.Reason) explained {
	info, e := r.Info(), r.Explain()
	return explained{info.Word, info.Status, info.Text, e.Hint, e.Meaning, e.Causes, e.Advice}
}

// reasons lists all.
func (c *command) reasons() error {
	var list []explained
	for _, r := range message.Reasons() {
		list = append(list, explain(r))
	}
	return show(c, list, nil, func(list []explained) error {
		var rows [][]string
		for _, e := range list {
			rows = append(rows, []string{e.Reason, number(e.Status), e.Hint})
		}
		return c.screen.table([]string{"REASON", "STATUS", "HINT"}, rows)
	})
}

func (s *screen) explained(e explained) error {
	head := e.Reason
	if e.Status != 0 {
		head += fmt.Sprintf(", status %d", e.Status)
	}
	err := s.text("", "", head)
	if err == nil {
		err = s.part("", func() error { return s.text("", "", e.Meaning) })
	}
	if err == nil {
		err = s.part("likely causes:", func() error { return s.list(e.Causes) })
	}
	if err == nil {
		err = s.part("what to do:", func() error { return s.list(e.Advice) })
	}
	return err
}

func (s *screen) list(items []string) error {
	for _, item := range items {
		if err := s.text("- ", "  ", item); err != nil {
			return err
		}
	}
	return nil
}
