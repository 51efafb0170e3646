import ArgumentParser
import CKVM
import Foundation
import Replay
import Trace
import VMCore

struct TraceCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "trace", abstract: "Shows each instruction of a stretch, with what it changed.",
        discussion: """
            The soft engine replays the stretch, whatever recorded the trace. A line has the position, the address, the \
            instruction, the registers that it changed and the guest physical memory that it wrote, with the new content; \
            lines that begin with -- are exits, and vectors that enter.
            """)

    @OptionGroup var trace: TraceArgument

    @Option(help: ArgumentHelp("The position to start at, an exit or N+K. Default: the first.", valueName: "position"))
    var from: String?

    @Option(help: ArgumentHelp("The position to end at. Default: the end.", valueName: "position"))
    var to: String?

    @Option(name: .shortAndLong, help: ArgumentHelp("Write to this file.", valueName: "file"))
    var output: String?

    @OptionGroup var symbols: SymbolOptions

    @Flag(help: "Print a JSON object a line.")
    var json = false

    func run() throws {
        try reporting {
            let reader = try TraceReader(path: trace.path())
            let start = try from.map { try parsePosition($0, option: "--from", in: reader) }
            let end = try to.map { try parsePosition($0, option: "--to", in: reader) }
            let table = try symbols.table(for: reader)
            let target = try open()
            defer { if target != 1 { close(target) } }
            let timeline = try Timeline(reader: reader, host: .soft)
            let first = start ?? Position(exit: timeline.first)
            if let end, end < first { throw UsageError("--to \(end) comes before --from \(first)") }
            let sink = Sink(target, timeline.stopper)
            let tracer = InstructionTracer(json ? .json : .text, symbols: table) { sink.write($0) }
            let began = hostTime()
            do {
                defer { tracer.flush() }
                try watched(timeline) { try timeline.trace(from: first, to: end, with: tracer) }
            } catch is Timeline.Stopped where sink.isClosed {
                // Nobody reads on, or the disk is full.
            }
            if let error = sink.error { throw SystemCallError("write", errno: error) }
            if let output {
                let span = (hostTime() - began).seconds
                say("vmrr: \(output): \(tracer.instructions) instructions in \(humanSeconds(span))")
            }
            return .done
        }
    }

    private func open() throws -> Int32 {
        guard let output else { return 1 }
        let target = ckvm_create(output)
        guard target >= 0 else { throw UsageError("can't write \(output): \(String(cString: strerror(ckvm_errno())))") }
        return target
    }

    /// Where the lines go. A reader that takes no more, such as head, ends the replay.
    private final class Sink {
        private let descriptor: Int32
        private let stop: @Sendable () -> Void
        private(set) var isClosed = false
        private(set) var error: Int32?

        init(_ descriptor: Int32, _ stop: @escaping @Sendable () -> Void) { (self.descriptor, self.stop) = (descriptor, stop) }

        func write(_ bytes: UnsafeRawBufferPointer) {
            var rest = bytes[...]
            while !rest.isEmpty, !isClosed {
                let count = UnsafeRawBufferPointer(rebasing: rest).withMemoryRebound(to: UInt8.self) {
                    Foundation.write(descriptor, $0.baseAddress, $0.count)
                }
                if count < 0 {
                    if ckvm_errno() == EINTR { continue }
                    isClosed = true
                    if ckvm_errno() != EPIPE { error = ckvm_errno() }
                    stop()
                    return
                }
                rest = rest.dropFirst(count)
            }
        }
    }
}
