import ArgumentParser
import Foundation
import Replay
import Trace
import VMCore

struct DivergeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "diverge", abstract: "Shows where two recordings of one guest part.",
        discussion: """
            First the first event in which they differ, by kind: input, timing, output or state. Then the first \
            checkpoint at which their memory differs. Host times don't count.
            """)

    @Argument(help: ArgumentHelp("The first trace.", valueName: "a"))
    var a: String

    @Argument(help: ArgumentHelp("The second trace.", valueName: "b"))
    var b: String

    @Flag(help: "Compare events alone, which takes no replay.")
    var eventsOnly = false

    @OptionGroup var engine: EngineOption

    @Flag(help: "Print JSON.")
    var json = false

    func run() throws {
        try reporting {
            let (left, right) = (try TraceReader(path: a), try TraceReader(path: b))
            var bar = ProgressBar("comparing")
            let difference = try EventDifference(left, right) { bar.update($0) }
            let memory = eventsOnly ? nil : try memory(left, right, from: difference?.lastCommonExit) { bar.update($0) }
            bar.finish()
            if json {
                let report: JSON = [
                    "equal": .bool(difference == nil && memory == nil), "event": difference?.json ?? .null,
                    "memory": memory?.json ?? .null,
                ]
                write(report.text() + "\n")
                return .done
            }
            var lines = difference?.lines((a, b), outputStyle) ?? ["the events are equal"]
            if !eventsOnly { lines += memory?.lines(outputStyle) ?? ["memory doesn't differ at any checkpoint"] }
            write(lines.joined(separator: "\n") + "\n")
            return .done
        }
    }

    private func memory(_ a: TraceReader, _ b: TraceReader, from exit: ExitNumber?, progress: (Double) -> Void) throws
        -> CheckpointDifference?
    {
        let left = try Timeline(reader: a, host: engine.open(for: a.description()))
        let right = try Timeline(reader: b, host: engine.open(for: b.description()))
        return try watched(left, right) {
            try CheckpointDifference(left, right, from: exit ?? min(left.last, right.last), progress: progress)
        }
    }
}
