import ArgumentParser
import Foundation
import Replay
import Trace
import VMCore

struct WritesCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "writes", abstract: "Lists what changed a run of memory, newest first.",
        discussion: """
            Each change comes with the instruction, where this host's KVM can step there, or with the exits between \
            which it happened, and with the old and the new bytes. A linear address is translated once, with the page tables \
            of --at. Stretches at whose ends the memory is the same are passed over; --exhaustive replays them too.
            """)

    @OptionGroup var trace: TraceArgument

    @Option(
        help: ArgumentHelp(
            "The memory: ADDR, ADDR:LEN or phys:ADDR:LEN, numbers or symbols; 8 bytes without LEN.",
            valueName: "range"))
    var mem: String

    @Option(help: ArgumentHelp("Look for changes before this exit; the last without it.", valueName: "exit"))
    var at: ExitArgument?

    @Flag(help: "Stop at the last change.")
    var last = false

    @Option(help: ArgumentHelp("Stop after this many changes.", valueName: "n"))
    var limit = 20

    @Flag(help: "Also look where the bytes changed and changed back.")
    var exhaustive = false

    @OptionGroup var symbols: SymbolOptions

    @OptionGroup var engine: EngineOption

    @Flag(help: "Print JSON.")
    var json = false

    func validate() throws {
        if limit < 1 { throw ValidationError("--limit takes a number from 1") }
    }

    func run() throws {
        try reporting {
            let reader = try TraceReader(path: trace.path())
            let table = try symbols.table(for: reader)
            let range = try symbols.range(mem, in: table, option: "--mem", standard: 8)
            var options = WriteSearch.Options()
            options.at = try at.map { try $0.exit(in: reader) }
            options.limit = last ? 1 : limit
            options.isExhaustive = exhaustive
            let timeline = try Timeline(
                reader: reader, host: engine.open(for: reader.description()))
            let search = WriteSearch(timeline, range: range, options: options)
            var bar = ProgressBar("searching")
            search.progress = { bar.update($1) }
            var found: [WriteSearch.Write] = []
            try watched(timeline) {
                try search.run { change in
                    found.append(change)
                    bar.finish()
                    if !json { write(change.lines(of: range, table, outputStyle).joined(separator: "\n") + "\n") }
                }
            }
            bar.finish()
            if json {
                let report: JSON = [
                    "writes": .array(found.map { $0.json(of: range, table) }), "more": .bool(search.isCut),
                    "obstacle": JSON(search.obstacle), "intervals": JSON(search.intervals),
                    "intervals_replayed": JSON(search.replayed), "seconds": .number(search.seconds),
                ]
                write(report.text() + "\n")
            } else {
                if found.isEmpty { write("nothing changed it\n") }
                if let obstacle = search.obstacle { say("vmrr: no instructions: \(obstacle)") }
                if search.isCut, !last { say("vmrr: there may be older changes: --limit finds more") }
            }
            return .done
        }
    }
}
