import ArgumentParser
import Foundation
import Replay
import Trace
import VMCore

struct StateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "state", abstract: "Shows a guest's registers, code, stack, memory and devices at any exit.")

    @OptionGroup var trace: TraceArgument

    @Option(
        help: ArgumentHelp(
            "The exit, or so many instructions after one: N, N+K or mark:NAME. The end without it.", valueName: "exit"))
    var at: String?

    @Option(
        help: ArgumentHelp(
            "Memory to show: ADDR, ADDR:LEN or phys:ADDR:LEN, numbers or symbols; 64 bytes without LEN. "
                + "May be repeated.", valueName: "range"))
    var mem: [String] = []

    @Option(
        name: .customLong("as"),
        help: ArgumentHelp(
            "How --mem is shown: \(MemoryFormat.allCases.map(\.rawValue).joined(separator: ", ")).", valueName: "format"
        ))
    var format = MemoryFormat.hex

    @Option(
        help: ArgumentHelp("Show the page tables' entries for this linear address. May be repeated.", valueName: "addr")
    )
    var pages: [String] = []

    @Flag(
        help: ArgumentHelp(
            "Show where the guest was called from: exactly with a Linux kernel as --symbols, which knows how its stack is "
                + "unwound; else by frame pointers, then guesses from the stack."))
    var backtrace = false

    @OptionGroup var symbols: SymbolOptions

    @OptionGroup var engine: EngineOption

    @Flag(help: "Print JSON.")
    var json = false

    func run() throws {
        try reporting {
            let reader = try TraceReader(path: trace.path())
            let position = try at.map { try parsePosition($0, option: "--at", in: reader) }
            var options = StateOptions()
            (options.symbols, options.unwinding) = try symbols.load(for: reader, near: position?.exit ?? reader.lastExit)
            options.memory = try mem.map { try symbols.range($0, in: options.symbols, option: "--mem", standard: 64) }
            options.format = format
            options.pages = try pages.map { try symbols.address($0, in: options.symbols, option: "--pages") }
            options.backtrace = backtrace
            let timeline = try Timeline(
                reader: reader, host: engine.open(for: reader.description()),
                withDevices: reader.canReplayDevices())
            var bar = ProgressBar("replaying")
            timeline.progress = { bar.update($0) }
            try watched(timeline) {
                if let position { try timeline.seek(to: position) } else { try timeline.seekToEnd() }
            }
            bar.finish()
            let report = try StateReport(
                timeline, at: timeline.position, platform: timeline.platform,
                transcript: Transcript(reader), options: options)
            write(json ? report.json.text() + "\n" : report.lines(outputStyle).joined(separator: "\n") + "\n")
            return .done
        }
    }
}

extension MemoryFormat: ExpressibleByArgument {}
