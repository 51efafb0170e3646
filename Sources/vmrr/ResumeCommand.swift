import ArgumentParser
import Foundation
import Recorder
import Replay
import Trace
import VMCore

struct ResumeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "resume", abstract: "Goes live from an exit of a recording, with real devices.",
        discussion: """
            The guest is replayed to the exit, the devices beside it, and runs on from there as if it had never been \
            stopped: machine time goes on, and what comes then depends on the world again. With -o the new branch is \
            recorded; its trace names the one it comes from.
            """)

    @OptionGroup var trace: TraceArgument

    @Option(help: ArgumentHelp("The exit to go on after, or mark:NAME. Default: the first of the trace, which for a snapshot is where "
        + "it was cut.", valueName: "exit"))
    var at: ExitArgument?

    @Option(name: .shortAndLong, help: ArgumentHelp("Record the branch into this trace.", valueName: "file"))
    var output: String?

    @Flag(help: "Replace the trace of -o if it exists.")
    var force = false

    @OptionGroup var engine: EngineOption

    @OptionGroup var world: WorldOptions

    @OptionGroup var checkpoints: CheckpointOptions

    @Option(help: ArgumentHelp("Delay timer interrupts by random spans made from this seed.", valueName: "seed"))
    var varyTiming: UInt64?

    @Flag(help: "Print a report in JSON on standard output; the guest's console goes to standard error.")
    var json = false

    func validate() throws {
        if output == nil, force { throw ValidationError("--force goes with -o") }
        if output == nil, checkpoints.checkpointEvery != nil { throw ValidationError("--checkpoint-every goes with -o") }
    }

    func run() throws {
        try reporting {
            let path = try trace.path()
            var options = try world.runOptions()
            options.live.timingSeed = varyTiming
            options.notice = { say("vmrr: \($0)") }
            if json { options.consoleDescriptor = 2 }
            if let output, !force, FileManager.default.fileExists(atPath: output) {
                throw UsageError("\(output) exists; --force replaces it")
            }
            if let output { try SnapshotCommand.refuse(writing: output, over: path) }
            let policy = try checkpoints.policy()
            let reader = try TraceReader(path: path)
            let host = try engine.open(for: reader.description())
            options.live.clock = world.clock(on: host)
            let stopper = Stopper()
            options.started = { stopper.attach($0) }
            let watch = SignalWatch { stopper.stop() }
            let timeline = try Timeline(reader: reader, host: host, withDevices: true)
            stopper.attach(timeline.stopper)
            if let at { try timeline.seek(to: at.exit(in: reader)) }
            let start = timeline.position.exit
            let machine = try timeline.goLive()
            let result = try withExtendedLifetime((watch, timeline)) {
                guard let output else { return try Recorder.run(machine, options: options) }
                var recording = Recording(path: output, guest: timeline.description.guest,
                                          commandLine: CommandLine.arguments, version: VMRR.version)
                recording.overwrite = force
                recording.checkpoints = policy
                recording.parent = TraceParent(name: URL(fileURLWithPath: path).lastPathComponent,
                                               identity: reader.identity, exit: start)
                return try recording.record(machine, options: options)
            }
            report(result, host.kind, from: start)
            return status(of: result.ending)
        }
    }

    private func report(_ result: RunResult, _ engine: EngineKind, from start: ExitNumber) {
        if json {
            write(JSON.object([
                ("trace", JSON(output)), ("engine", .string(engine.rawValue)), ("from", JSON(start.rawValue)),
                ("exits", JSON(result.exits - start.rawValue)), ("last_exit", JSON(result.exits)),
                ("ended", .string(result.ending.name)), ("guest_status", JSON(result.ending.guestStatus)),
                ("state_digest", JSON(result.digests?.state.description)),
                ("memory_digest", JSON(result.digests?.memory.description)), ("seconds", .number(result.seconds)),
            ]).text() + "\n")
            return
        }
        say("vmrr: \(describe(result.ending)) at exit \(result.exits), \(result.exits - start.rawValue) exits after "
            + "the recording's \(start.rawValue), \(humanSeconds(result.seconds))")
        if let output { say("vmrr: \(output): \(result.events) events, \(humanBytes(result.fileBytes))") }
    }
}
