/// Integer and floating-point instructions that move elements from one place to another.
enum VectorShuffle: UInt16 {
    case packSigned16, packSigned32, packUnsigned16, packUnsigned32
    case unpackLow8, unpackLow16, unpackLow32, unpackLow64, unpackHigh8, unpackHigh16, unpackHigh32, unpackHigh64
    case shuffleBytes, shuffle16, shuffleLow16, shuffleHigh16, shuffle32, shuffleBoth32, shuffleBoth64
    case align, bytesLeft, bytesRight
    case horizontalAdd16, horizontalAdd32, horizontalAddS16, horizontalSub16, horizontalSub32, horizontalSubS16
    case blend16, blend32, blend64, select8, select32, select64
    case insert8, insert16, insert32, insert64, insertFloat, extract8, extract16, extract32, extract64
    case mask8, mask32, mask64
    case signed8to16, signed8to32, signed8to64, signed16to32, signed16to64, signed32to64
    case unsigned8to16, unsigned8to32, unsigned8to64, unsigned16to32, unsigned16to64, unsigned32to64
    case duplicateLow64, duplicateEven32, duplicateOdd32
    case sumDifferences, sumDifferencesBy4, leastPosition
    // AVX.
    case permute32, permute64, permuteHalves, permuteAll32, permuteAll64, permuteEach32, permuteEach64
}

extension VectorOperands {
    /// Bytes within which the older instructions stay: all of an MMX register, 16 of the others.
    fileprivate var lane: Int { min(bytes, 16) }

    /// Calls `body` with the offset of each lane.
    @inline(__always)
    fileprivate func lanes(_ body: (Int) -> Void) {
        var offset = 0
        while offset < bytes {
            body(offset)
            offset &+= 16
        }
    }

    @inline(__always)
    fileprivate func pack<From: FixedWidthInteger, To: FixedWidthInteger>(_ from: From.Type, _ to: To.Type) {
        let count = lane / MemoryLayout<From>.size
        lanes { offset in
            for i in 0..<count {
                let x = Self.load(a + offset, i, From.self), y = Self.load(b + offset, i, From.self)
                (d + offset).storeBytes(of: To(clamping: x), toByteOffset: i * MemoryLayout<To>.size, as: To.self)
                (d + offset).storeBytes(of: To(clamping: y), toByteOffset: (count + i) * MemoryLayout<To>.size, as: To.self)
            }
        }
    }

    @inline(__always)
    fileprivate func unpack<T: FixedWidthInteger>(_ type: T.Type, high: Bool) {
        let size = MemoryLayout<T>.size
        let half = lane / 2
        lanes { offset in
            let from = offset + (high ? half : 0)
            for i in 0..<(half / size) {
                (d + offset).storeBytes(of: Self.load(a + from, i, T.self), toByteOffset: 2 * i * size, as: T.self)
                (d + offset).storeBytes(of: Self.load(b + from, i, T.self), toByteOffset: (2 * i + 1) * size, as: T.self)
            }
        }
    }

    @inline(__always)
    fileprivate func horizontal<T: FixedWidthInteger>(_ type: T.Type, _ body: (T, T) -> T) {
        let size = MemoryLayout<T>.size
        let count = lane / size / 2
        lanes { offset in
            for i in 0..<count {
                let x = body(Self.load(a + offset, 2 * i, T.self), Self.load(a + offset, 2 * i + 1, T.self))
                let y = body(Self.load(b + offset, 2 * i, T.self), Self.load(b + offset, 2 * i + 1, T.self))
                (d + offset).storeBytes(of: x, toByteOffset: i * size, as: T.self)
                (d + offset).storeBytes(of: y, toByteOffset: (count + i) * size, as: T.self)
            }
        }
    }

    /// Each element of the second operand, wider.
    @inline(__always)
    fileprivate func extend<From: FixedWidthInteger, To: FixedWidthInteger>(_ from: From.Type, _ to: To.Type) {
        for i in 0..<(bytes / MemoryLayout<To>.size) { set(i, To(truncatingIfNeeded: Self.load(b, i, From.self))) }
    }

    /// The elements of `source` that two bits each of the immediate choose, within lanes.
    @inline(__always)
    fileprivate func choose<T: FixedWidthInteger>(_ type: T.Type, in count: Int, at start: Int = 0) {
        let size = MemoryLayout<T>.size
        lanes { offset in
            for i in 0..<count {
                let from = start + Int(immediate >> UInt8(2 * i) & 3)
                let value = Self.load(b + offset, from, T.self)
                (d + offset).storeBytes(of: value, toByteOffset: (start + i) * size, as: T.self)
            }
        }
    }

    /// Elements of the second operand where `takes` says so, of the first elsewhere.
    @inline(__always)
    fileprivate func blend<T: FixedWidthInteger>(_ type: T.Type, _ takes: (Int) -> Bool) {
        for i in 0..<(bytes / MemoryLayout<T>.size) { set(i, Self.load(takes(i) ? b : a, i, T.self)) }
    }

    fileprivate func copyLane(_ offset: Int, from source: UnsafeMutableRawPointer) {
        d.storeBytes(of: source.loadUnaligned(fromByteOffset: offset, as: UInt64.self), toByteOffset: offset, as: UInt64.self)
    }
}

extension Core {
    func executeShuffle(_ code: VectorShuffle, _ form: VectorForm, _ o: VectorOperands) {
        switch code {
        case .packSigned16: o.pack(Int16.self, Int8.self)
        case .packSigned32: o.pack(Int32.self, Int16.self)
        case .packUnsigned16: o.pack(Int16.self, UInt8.self)
        case .packUnsigned32: o.pack(Int32.self, UInt16.self)
        case .unpackLow8: o.unpack(UInt8.self, high: false)
        case .unpackLow16: o.unpack(UInt16.self, high: false)
        case .unpackLow32: o.unpack(UInt32.self, high: false)
        case .unpackLow64: o.unpack(UInt64.self, high: false)
        case .unpackHigh8: o.unpack(UInt8.self, high: true)
        case .unpackHigh16: o.unpack(UInt16.self, high: true)
        case .unpackHigh32: o.unpack(UInt32.self, high: true)
        case .unpackHigh64: o.unpack(UInt64.self, high: true)
        case .shuffleBytes:
            o.lanes { offset in
                for i in 0..<o.lane {
                    let choice = VectorOperands.load(o.b + offset, i, UInt8.self)
                    let value = VectorOperands.load(o.a + offset, Int(choice) & (o.lane - 1), UInt8.self)
                    o.set(offset + i, choice & 0x80 != 0 ? 0 : value)
                }
            }
        case .shuffle16: o.choose(UInt16.self, in: 4)
        case .shuffleLow16:
            o.lanes { o.copyLane($0 + 8, from: o.b) }
            o.choose(UInt16.self, in: 4)
        case .shuffleHigh16:
            o.lanes { o.copyLane($0, from: o.b) }
            o.choose(UInt16.self, in: 4, at: 4)
        case .shuffle32, .permute32: o.choose(UInt32.self, in: 4)
        case .shuffleBoth32:
            o.lanes { offset in
                for i in 0..<4 {
                    let from = Int(o.immediate >> UInt8(2 * i) & 3)
                    let value = VectorOperands.load((i < 2 ? o.a : o.b) + offset, from, UInt32.self)
                    (o.d + offset).storeBytes(of: value, toByteOffset: 4 * i, as: UInt32.self)
                }
            }
        case .shuffleBoth64:
            for i in 0..<(o.bytes / 8) {
                let from = i & ~1 | Int(o.immediate >> UInt8(i) & 1)
                o.set(i, VectorOperands.load(i & 1 == 0 ? o.a : o.b, from, UInt64.self))
            }
        case .align:
            // The first operand lies above the second.
            o.lanes { offset in
                for i in 0..<o.lane {
                    let from = i + Int(o.immediate)
                    let value: UInt8 = from < o.lane ? VectorOperands.load(o.b + offset, from, UInt8.self)
                        : from < 2 * o.lane ? VectorOperands.load(o.a + offset, from - o.lane, UInt8.self) : 0
                    o.set(offset + i, value)
                }
            }
        case .bytesLeft, .bytesRight:
            let count = code == .bytesLeft ? -Int(o.immediate) : Int(o.immediate)
            o.lanes { offset in
                for i in 0..<16 {
                    let from = i + count
                    o.set(offset + i, from >= 0 && from < 16 ? VectorOperands.load(o.b + offset, from, UInt8.self) : 0)
                }
            }
        default: executeHorizontal(code, form, o)
        }
    }

    private func executeHorizontal(_ code: VectorShuffle, _ form: VectorForm, _ o: VectorOperands) {
        switch code {
        case .horizontalAdd16: o.horizontal(UInt16.self) { $0 &+ $1 }
        case .horizontalAdd32: o.horizontal(UInt32.self) { $0 &+ $1 }
        case .horizontalAddS16: o.horizontal(Int16.self) { Int16(clamping: Int($0) &+ Int($1)) }
        case .horizontalSub16: o.horizontal(UInt16.self) { $0 &- $1 }
        case .horizontalSub32: o.horizontal(UInt32.self) { $0 &- $1 }
        case .horizontalSubS16: o.horizontal(Int16.self) { Int16(clamping: Int($0) &- Int($1)) }
        case .blend16: o.blend(UInt16.self) { o.immediate >> UInt8($0 & 7) & 1 != 0 }
        case .blend32: o.blend(UInt32.self) { o.immediate >> UInt8($0 & 7) & 1 != 0 }
        case .blend64: o.blend(UInt64.self) { o.immediate >> UInt8($0 & 7) & 1 != 0 }
        case .select8, .select32, .select64:
            // The mask is XMM0, or with VEX the register that the immediate names.
            let mask = s.floatingPoint.result
            mask.copyMemory(from: s.floatingPoint.vector(form.isVEX ? o.immediate >> 4 : 0), byteCount: 32)
            switch code {
            case .select8: o.blend(UInt8.self) { VectorOperands.load(mask, $0, Int8.self) < 0 }
            case .select32: o.blend(UInt32.self) { VectorOperands.load(mask, $0, Int32.self) < 0 }
            default: o.blend(UInt64.self) { VectorOperands.load(mask, $0, Int64.self) < 0 }
            }
        case .insert8: insert(o, VectorOperands.load(o.b, 0, UInt8.self))
        case .insert16: insert(o, VectorOperands.load(o.b, 0, UInt16.self))
        case .insert32: insert(o, VectorOperands.load(o.b, 0, UInt32.self))
        case .insert64: insert(o, VectorOperands.load(o.b, 0, UInt64.self))
        case .insertFloat:
            // From memory the choice of a source element doesn't count: there is one.
            let from = form.memoryBytes != 0 ? 0 : Int(o.immediate >> 6)
            let value = VectorOperands.load(o.b, from, UInt32.self)
            for i in 0..<4 {
                let element = i == Int(o.immediate >> 4 & 3) ? value : VectorOperands.load(o.a, i, UInt32.self)
                o.set(i, o.immediate >> UInt8(i) & 1 != 0 ? 0 : element)
            }
        case .extract8: o.set(0, UInt64(VectorOperands.load(o.b, Int(o.immediate & 15), UInt8.self)))
        case .extract16: o.set(0, UInt64(VectorOperands.load(o.b, Int(o.immediate) & (o.lane / 2 - 1), UInt16.self)))
        case .extract32: o.set(0, UInt64(VectorOperands.load(o.b, Int(o.immediate & 3), UInt32.self)))
        case .extract64: o.set(0, VectorOperands.load(o.b, Int(o.immediate & 1), UInt64.self))
        case .mask8: mask(o, Int8.self)
        case .mask32: mask(o, Int32.self)
        case .mask64: mask(o, Int64.self)
        default: executeExtension(code, o)
        }
    }

    /// The first operand with one element replaced.
    private func insert<T: FixedWidthInteger>(_ o: VectorOperands, _ value: T) {
        let count = o.lane / MemoryLayout<T>.size
        for i in 0..<count { o.set(i, VectorOperands.load(o.a, i, T.self)) }
        o.set(Int(o.immediate) & (count - 1), value)
    }

    /// The top bits of the elements.
    private func mask<T: FixedWidthInteger>(_ o: VectorOperands, _ type: T.Type) {
        var bits: UInt64 = 0
        for i in 0..<(o.bytes / MemoryLayout<T>.size) where VectorOperands.load(o.b, i, T.self) < 0 { bits |= 1 << UInt64(i) }
        o.set(0, bits)
    }

    private func executeExtension(_ code: VectorShuffle, _ o: VectorOperands) {
        switch code {
        case .signed8to16: o.extend(Int8.self, Int16.self)
        case .signed8to32: o.extend(Int8.self, Int32.self)
        case .signed8to64: o.extend(Int8.self, Int64.self)
        case .signed16to32: o.extend(Int16.self, Int32.self)
        case .signed16to64: o.extend(Int16.self, Int64.self)
        case .signed32to64: o.extend(Int32.self, Int64.self)
        case .unsigned8to16: o.extend(UInt8.self, UInt16.self)
        case .unsigned8to32: o.extend(UInt8.self, UInt32.self)
        case .unsigned8to64: o.extend(UInt8.self, UInt64.self)
        case .unsigned16to32: o.extend(UInt16.self, UInt32.self)
        case .unsigned16to64: o.extend(UInt16.self, UInt64.self)
        case .unsigned32to64: o.extend(UInt32.self, UInt64.self)
        case .duplicateLow64:
            for i in 0..<(o.bytes / 8) { o.set(i, VectorOperands.load(o.b, i & ~1, UInt64.self)) }
        case .duplicateEven32:
            for i in 0..<(o.bytes / 4) { o.set(i, VectorOperands.load(o.b, i & ~1, UInt32.self)) }
        case .duplicateOdd32:
            for i in 0..<(o.bytes / 4) { o.set(i, VectorOperands.load(o.b, i | 1, UInt32.self)) }
        case .sumDifferences:
            for i in 0..<(o.bytes / 8) {
                var sum: UInt64 = 0
                for j in (8 * i)..<(8 * i + 8) { sum &+= difference(o, j, j) }
                o.set(i, sum)
            }
        case .sumDifferencesBy4:
            // Three bits of the immediate a lane: where to start in the first operand (by 4) and in the second.
            o.lanes { offset in
                let choice = Int(offset == 0 ? o.immediate : o.immediate >> 3)
                let first = offset + (choice >> 2 & 1) * 4, second = offset + (choice & 3) * 4
                for i in 0..<8 {
                    var sum: UInt64 = 0
                    for j in 0..<4 { sum &+= difference(o, first + i + j, second + j) }
                    o.set(offset / 2 + i, UInt16(truncatingIfNeeded: sum))
                }
            }
        case .leastPosition:
            var (least, position) = (UInt16.max, 0)
            for i in (0..<8).reversed() where VectorOperands.load(o.b, i, UInt16.self) <= least {
                (least, position) = (VectorOperands.load(o.b, i, UInt16.self), i)
            }
            o.d.storeBytes(of: SIMD2(UInt64(least) | UInt64(position) << 16, 0), as: SIMD2<UInt64>.self)
        default: executePermutation(code, o)
        }
    }

    private func difference(_ o: VectorOperands, _ i: Int, _ j: Int) -> UInt64 {
        let x = VectorOperands.load(o.a, i, UInt8.self), y = VectorOperands.load(o.b, j, UInt8.self)
        return UInt64(x > y ? x &- y : y &- x)
    }

    /// AVX's own.
    private func executePermutation(_ code: VectorShuffle, _ o: VectorOperands) {
        switch code {
        case .permute64:
            for i in 0..<(o.bytes / 8) {
                o.set(i, VectorOperands.load(o.b, i & ~1 | Int(o.immediate >> UInt8(i) & 1), UInt64.self))
            }
        case .permuteEach32:
            for i in 0..<(o.bytes / 4) {
                o.set(i, VectorOperands.load(o.a, i & ~3 | Int(VectorOperands.load(o.b, i, UInt32.self) & 3), UInt32.self))
            }
        case .permuteEach64:
            for i in 0..<(o.bytes / 8) {
                o.set(i, VectorOperands.load(o.a, i & ~1 | Int(VectorOperands.load(o.b, i, UInt64.self) >> 1 & 1), UInt64.self))
            }
        case .permuteHalves:
            for half in 0..<2 {
                let choice = o.immediate >> UInt8(4 * half)
                for i in 0..<2 {
                    let value = VectorOperands.load(choice & 2 == 0 ? o.a : o.b, Int(choice & 1) * 2 + i, UInt64.self)
                    o.set(2 * half + i, choice & 8 != 0 ? 0 : value)
                }
            }
        case .permuteAll32:
            // The first operand chooses among the second's elements.
            for i in 0..<8 { o.set(i, VectorOperands.load(o.b, Int(VectorOperands.load(o.a, i, UInt32.self) & 7), UInt32.self)) }
        default:
            for i in 0..<4 { o.set(i, VectorOperands.load(o.b, Int(o.immediate >> UInt8(2 * i) & 3), UInt64.self)) }
        }
    }
}
