import ArgumentParser
import Foundation
import VMCore

struct GuestsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "guests", abstract: "Lists the built-in guests, or writes the image of one to a file.")

    @Flag(help: "Print JSON.")
    var json = false

    @Option(help: ArgumentHelp("Write this guest's image.", valueName: "name"))
    var export: String?

    @Option(name: .shortAndLong, help: ArgumentHelp("Where --export writes; NAME.bin without it.", valueName: "file"))
    var output: String?

    func run() throws {
        try reporting {
            if let export {
                guard let guest = BuiltInGuest.named(export) else {
                    throw UsageError("there is no built-in guest '\(export)'")
                }
                let path = output ?? "\(export).bin"
                guard FileManager.default.createFile(atPath: path, contents: Data(guest.bytes)) else {
                    throw UsageError("can't write \(path)")
                }
                return .done
            }
            if json {
                let list = BuiltInGuest.all.map { guest -> JSON in
                    ["name": .string(guest.name), "summary": .string(guest.summary),
                     "parameters": .string(guest.parameters), "bytes": JSON(guest.bytes.count),
                     "timestamps": .string(guest.timestamps.rawValue)]
                }
                write(JSON.array(list).text() + "\n")
                return .done
            }
            let width = BuiltInGuest.all.map(\.name.count).max() ?? 0
            for guest in BuiltInGuest.all {
                let name = guest.name + String(repeating: " ", count: width - guest.name.count)
                write("\(name)  \(guest.summary)\(guest.parameters.isEmpty ? "" : "  (\(guest.parameters))")\n")
            }
            return .done
        }
    }
}
