import ArgumentParser
import Foundation
import Replay
import Trace
import VMCore

struct ExportCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "export", abstract: "Writes a guest's console as a file for other programs.",
        discussion: """
            Nothing is replayed: what the guest printed, and when in its machine time, is in the trace. The user's marks \
            become markers of an asciicast.
            """)

    enum Format: String, ExpressibleByArgument, CaseIterable {
        case asciicast, text
    }

    @OptionGroup var trace: TraceArgument

    @Option(help: ArgumentHelp("asciicast: version 2, which asciinema plays; text: what was printed, byte by byte.",
                               valueName: "asciicast|text"))
    var format: Format

    @Option(name: [.short, .long], help: ArgumentHelp("The file to write. Default: standard output.", valueName: "file"))
    var output: String?

    @Flag(help: "Replace the file if it exists.")
    var force = false

    @Option(help: ArgumentHelp("The terminal's size in an asciicast; a serial line has none.", valueName: "columns x rows"))
    var size = "80x24"

    @Option(help: ArgumentHelp("Pauses in an asciicast are played no longer than this, such as 2s.", valueName: "time"))
    var idleLimit: String?

    @Flag(help: "Put what was typed into an asciicast as well.")
    var input = false

    func run() throws {
        try reporting {
            var cast = Asciicast()
            let sides = size.split(separator: "x", omittingEmptySubsequences: false).map { Int($0) ?? 0 }
            guard sides.count == 2, sides.allSatisfy({ (1...10_000).contains($0) }) else {
                throw UsageError("--size takes columns and rows such as 80x24, not '\(size)'")
            }
            cast.size = (sides[0], sides[1])
            cast.idleLimit = try idleLimit.map { text in
                guard let span = Nanoseconds(parsing: text), span.rawValue > 0 else {
                    throw UsageError("--idle-limit takes a time such as 2s, not '\(text)'")
                }
                return span
            }
            cast.hasInput = input
            let path = try trace.path()
            let reader = try TraceReader(path: path)
            let description = try reader.description()
            cast.created = description.created
            cast.title = description.guest
            let file = try OutputFile(output, force: force, not: path)
            if format == .asciicast { try file.write(Array(cast.header.utf8)) }
            var console = ConsoleRecording(reader)
            while let part = try console.next() {
                switch format {
                case .asciicast: try file.write(Array(cast.line(part).utf8))
                case .text: if case .output(let bytes) = part.content { try file.write(bytes) }
                }
            }
            try file.finish()
            return .done
        }
    }
}
