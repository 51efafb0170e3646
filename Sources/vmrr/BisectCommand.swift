import ArgumentParser
import Foundation
import Replay
import Trace
import VMCore

struct BisectCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bisect", abstract: "Finds the first exit at which something holds, and the instruction.",
        discussion: """
            Halves the trace: over checkpoints, then over exits; then it steps through the instructions before the \
            exit, where this host's KVM can. What is asked must be false at the start and true at the end. \
            docs/predicates.md has the language of --when. A command gets the state as JSON on standard input and the \
            exit in VMRR_EXIT; its status says 0 good, 1 to 127 bad, 125 can't tell.
            """)

    @OptionGroup var trace: TraceArgument

    @Option(help: ArgumentHelp("The condition, such as 'u32[counter] > 5'.", valueName: "predicate"))
    var when: String?

    @Option(
        name: .customLong("run"),
        help: ArgumentHelp(
            "A shell command that says whether an exit is good.",
            valueName: "command"))
    var command: String?

    @Option(help: ArgumentHelp("Search from this exit on.", valueName: "exit"))
    var from: ExitArgument?

    @Option(help: ArgumentHelp("Search up to this exit.", valueName: "exit"))
    var to: ExitArgument?

    @Flag(help: "Ask at every exit, which also finds conditions that come and go.")
    var exhaustive = false

    @OptionGroup var symbols: SymbolOptions

    @OptionGroup var engine: EngineOption

    @Flag(help: "Print JSON.")
    var json = false

    func validate() throws {
        if (when == nil) == (command == nil) { throw ValidationError("bisect takes --when PREDICATE or --run COMMAND") }
    }

    func run() throws {
        try reporting {
            let path = try trace.path()
            let reader = try TraceReader(path: path)
            var options = Bisection.Options()
            options.symbols = try symbols.table(for: reader)
            options.from = try from.map { try $0.exit(in: reader) }
            options.to = try to.map { try $0.exit(in: reader) }
            options.isExhaustive = exhaustive
            let question: Bisection.Question =
                if let command { .command(command) } else {
                    .predicate(try symbols.predicate(when ?? "", of: reader, option: "--when"))
                }
            let timeline = try Timeline(
                reader: reader, host: engine.open(for: reader.description()),
                withDevices: command != nil && reader.canReplayDevices())
            let bisection = Bisection(timeline, question: question, options: options)
            var bar = ProgressBar("bisecting")
            bisection.progress = { bar.update($1) }
            let result = try watched(timeline) { try bisection.run() }
            bar.finish()
            write(
                json
                    ? result.json(options.symbols).text() + "\n"
                    : result.lines(trace: path, options.symbols, outputStyle).joined(separator: "\n") + "\n")
            return .done
        }
    }
}
