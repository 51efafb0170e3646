import Foundation
import VMCore

/// The state of the devices as a tree of names, from what a checkpoint stores of them.
public struct DeviceTree: Equatable, Sendable {
    /// A value and the names that lead to it, such as `interrupts.pic.master.mask`.
    public struct Leaf: Equatable, Sendable {
        public var path: String
        public var value: String
    }

    public let json: JSON
    public let leaves: [Leaf]

    public init(_ platform: Platform) throws {
        json = try JSONDecoder().decode(JSON.self, from: JSONEncoder().encode(platform))
        var leaves: [Leaf] = []
        Self.collect(json, path: "", into: &leaves)
        self.leaves = leaves
    }

    public static func == (a: Self, b: Self) -> Bool { a.leaves == b.leaves }

    private static func collect(_ json: JSON, path: String, into leaves: inout [Leaf]) {
        switch json {
        case .object(let members):
            for (name, value) in members {
                collect(value, path: path.isEmpty ? name : "\(path).\(name)", into: &leaves)
            }
        case .array(let values):
            for (index, value) in values.enumerated() { collect(value, path: "\(path)[\(index)]", into: &leaves) }
        default: leaves.append(Leaf(path: path, value: json.text(pretty: false)))
        }
    }

    /// The leaves that differ, in the order of their paths; nil where one side has none of that name.
    static func differences(_ a: DeviceTree, _ b: DeviceTree) -> [(path: String, a: String?, b: String?)] {
        let left = Dictionary(a.leaves.map { ($0.path, $0.value) }) { first, _ in first }
        let right = Dictionary(b.leaves.map { ($0.path, $0.value) }) { first, _ in first }
        return Set(left.keys).union(right.keys).sorted().compactMap { path in
            left[path] == right[path] ? nil : (path, left[path], right[path])
        }
    }

    /// The tree in lines: values of one part together, parts below it indented.
    func lines(_ style: Style) -> [String] {
        var lines: [String] = []
        Self.print(json, name: "", indent: 1, style, into: &lines)
        return lines
    }

    private static let width = 110

    private static func print(_ json: JSON, name: String, indent: Int, _ style: Style, into lines: inout [String]) {
        guard case .object(let members) = json else { return }
        let isLeaf: ((String, JSON)) -> Bool = { if case .object = $0.1 { false } else { true } }
        let margin = String(repeating: "  ", count: indent)
        if !name.isEmpty { lines.append(margin + style.heading(name)) }
        var line = ""
        for (name, value) in members.filter(isLeaf) {
            let word = "\(name)=\(short(value))"
            if !line.isEmpty, line.count + word.count + 2 + 2 * indent > width {
                lines.append(margin + "  " + line)
                line = ""
            }
            line += (line.isEmpty ? "" : "  ") + word
        }
        if !line.isEmpty { lines.append(margin + "  " + line) }
        for (name, value) in members where !isLeaf((name, value)) {
            print(value, name: name, indent: name.isEmpty ? indent : indent + 1, style, into: &lines)
        }
    }

    /// A list of numbers is shown on one line; long ones are cut, since `--json` has them in full.
    private static func short(_ json: JSON) -> String {
        let text = json.text(pretty: false)
        return text.count > 72 ? text.prefix(70) + "…" : text
    }
}

extension JSON: Decodable {
    private struct Name: CodingKey {
        var stringValue: String
        var intValue: Int? { nil }
        init(stringValue: String) { self.stringValue = stringValue }
        init?(intValue: Int) { nil }
    }

    /// Members come in the order of their names.
    public init(from decoder: any Decoder) throws {
        if let members = try? decoder.container(keyedBy: Name.self) {
            self = .object(
                try members.allKeys.map(\.stringValue).sorted().map {
                    ($0, try members.decode(JSON.self, forKey: Name(stringValue: $0)))
                })
        } else if var values = try? decoder.unkeyedContainer() {
            var list: [JSON] = []
            while !values.isAtEnd { list.append(try values.decode(JSON.self)) }
            self = .array(list)
        } else {
            let value = try decoder.singleValueContainer()
            if value.decodeNil() {
                self = .null
            } else if let bool = try? value.decode(Bool.self) {
                self = .bool(bool)
            } else if let number = try? value.decode(UInt64.self) {
                self = .unsigned(number)
            } else if let number = try? value.decode(Int64.self) {
                self = .integer(number)
            } else if let number = try? value.decode(Double.self) {
                self = .number(number)
            } else {
                self = .string(try value.decode(String.self))
            }
        }
    }
}
