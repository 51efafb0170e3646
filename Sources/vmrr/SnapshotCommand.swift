import ArgumentParser
import Foundation
import Replay
import Trace
import VMCore

struct SnapshotCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "snapshot", abstract: "Cuts a self-contained trace out of another.",
        discussion: """
            The new trace begins with the complete state at an exit and replays without the old one. Its exits keep \
            their numbers.
            """)

    @OptionGroup var trace: TraceArgument

    @Option(help: ArgumentHelp("The exit at which the new trace begins, or mark:NAME.", valueName: "exit"))
    var at: ExitArgument

    @Option(help: ArgumentHelp("The exit after which it ends, or mark:NAME; without it, the end of the old trace.", valueName: "exit"))
    var to: ExitArgument?

    @Option(name: [.short, .long], help: ArgumentHelp("The new trace.", valueName: "file"))
    var output: String

    @OptionGroup var engine: EngineOption

    @Flag(help: "Replace an existing file.")
    var force = false

    @Flag(help: "Print a report in JSON on standard output.")
    var json = false

    func run() throws {
        try reporting {
            let path = try trace.path()
            try Self.refuse(writing: output, over: path)
            let reader = try TraceReader(path: path)
            let host = try engine.open(for: reader.description())
            let timeline = try Timeline(reader: reader, host: host, withDevices: true)
            let stopper = Stopper()
            let watch = SignalWatch { stopper.stop() }
            defer { withExtendedLifetime(watch) {} }
            stopper.attach(timeline.stopper)
            var progress = ProgressBar("cutting")
            timeline.progress = { progress.update($0) }
            let snapshot = Snapshot(start: try at.exit(in: reader), end: try to.map { try $0.exit(in: reader) })
            try snapshot.write(from: timeline, named: URL(fileURLWithPath: path).lastPathComponent, to: output,
                               overwrite: force)
            progress.finish()
            let made = try TraceReader(path: output)
            if json {
                let report: JSON = [
                    "trace": .string(output), "first_exit": JSON(made.firstExit.rawValue),
                    "last_exit": JSON(made.lastExit.rawValue), "events": JSON(made.events),
                    "devices": .bool(timeline.platform != nil && timeline.deviceMismatch == nil),
                ]
                write(report.text() + "\n")
            } else {
                write("\(output): exits \(made.firstExit.rawValue) to \(made.lastExit.rawValue) of \(path)\n")
            }
            return .done
        }
    }

    /// A file that is read can't be replaced.
    static func refuse(writing output: String, over path: String) throws {
        var (a, b) = (stat(), stat())
        if stat(output, &a) == 0, stat(path, &b) == 0, a.st_dev == b.st_dev, a.st_ino == b.st_ino {
            throw UsageError("\(output) is the trace itself: choose another name")
        }
    }
}
